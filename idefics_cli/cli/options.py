"""Makes the options of a command from the settings records among its parameters.

A parameter that is a settings record stands for one option for each field annotated with an `Option`; the command gets
the record. One that is `Callable[..., Record]` gets the record with the fields that it lacks still to be given. Any
other parameter annotated with an `Option` is an option of this command only.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from idefics_cli.config import EndpointSettings, GenerationSettings, Option, PageSettings, Panel, option_of
from idefics_cli.errors import UsageError

_PANELS = list(Panel)
_PASSWORD_BYTES = 4096

PasswordFile = Annotated[Path | None, Option("A file whose first line is the password.", Panel.PAGES, metavar="FILE")]
AsJson = Annotated[bool, Option("Print JSON.", Panel.OUTPUT, ("--json",))]


def generation_fields() -> tuple[str, ...]:
    """Return the fields of the generation settings, for commands that lack their options."""
    return tuple(field.name for field in dataclasses.fields(GenerationSettings))


class Command(TyperCommand):
    """A command whose flags are shown without the type that some versions of typer give them."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, those that typer adds by itself included."""
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """The commands together, likewise."""

    def get_params(self, ctx: Any) -> Any:
        """See `Command`."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: Any) -> Any:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


def from_settings(
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a command that takes settings records into one that typer can call.

    Args:
        without: fields of the records that are no option of this command.
        only: fields that are, where most are not.
        defaults: other defaults than those of the records, by field.

    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        records: dict[str, _Record] = {}
        own: list[tuple[int, inspect.Parameter]] = []
        shared: list[tuple[int, inspect.Parameter]] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if (kind := _record_type(hints[name])) is not None:
                left_out = [one.name for one in dataclasses.fields(kind) if only is not None and one.name not in only]
                left_out += without
                records[name] = record = _Record(name, kind, left_out, defaults or {}, hints[name] is not kind)
                shared += record.parameters
            else:
                own.append(_own_parameter(parameter, hints[name]))

        def flat(**given: Any) -> None:
            for name, record in records.items():
                given[name] = record.taken_from(given)
            command(**given)

        ordered = [parameter for _, parameter in sorted(own + shared, key=lambda entry: entry[0])]
        flat.__name__, flat.__doc__ = command.__name__, command.__doc__
        flat.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
        flat.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        return flat

    return decorate


class _Record:
    """A settings record among the parameters of a command."""

    def __init__(
        self, name: str, kind: Any, without: Collection[str], defaults: Mapping[str, object], is_open: bool
    ) -> None:
        self._kind, self._is_open = kind, is_open
        self._fields: dict[str, str] = {}  # by the name of the flat parameter
        self._tuples: set[str] = set()
        self.parameters: list[tuple[int, inspect.Parameter]] = []
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            option = option_of(hints[field.name])
            if option is None or field.name in without:
                continue
            flat = f"{name}_{field.name}"
            hint = typing.get_args(hints[field.name])[0]
            default: Any = defaults.get(field.name, field.default)
            if typing.get_origin(hint) is tuple:
                self._tuples.add(field.name)
                hint, default = list[str], list(default)
            self._fields[flat] = field.name
            shown = None if field.name in defaults else option.default
            option = dataclasses.replace(option, names=option.flags(field.name), default=shown)
            self.parameters.append(_parameter(flat, hint, option, default))

    def taken_from(self, given: dict[str, Any]) -> Any:
        """Take the record's values from those of all options, and make it; raises UsageError as the record does."""
        values = {field: given.pop(flat) for flat, field in self._fields.items()}
        values |= {field: tuple(values[field] or ()) for field in self._tuples}
        return functools.partial(self._kind, **values) if self._is_open else self._kind(**values)


def _record_type(hint: Any) -> Any:
    """Return the settings record that a parameter is, or is to become; None where it is neither."""
    if typing.get_origin(hint) is Callable:
        hint = typing.get_args(hint)[1]
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _own_parameter(parameter: inspect.Parameter, hint: Any) -> tuple[int, inspect.Parameter]:
    option = option_of(hint)
    if option is None:  # an argument
        return -1, parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint)
    option = dataclasses.replace(option, names=option.flags(parameter.name))
    return _parameter(parameter.name, typing.get_args(hint)[0], option, parameter.default)


def _parameter(name: str, hint: Any, option: Option, default: Any) -> tuple[int, inspect.Parameter]:
    """Return the parameter that typer makes an option of, and the position of its panel in `--help`."""
    shows_default = bool(option.default) or (default is not None and default not in ([], "", False, 0.0))
    info = typer.Option(
        *option.names,
        help=option.help,
        rich_help_panel=None if option.panel is Panel.COMMON else str(option.panel),
        metavar=option.metavar,
        show_default=option.default or shows_default,
        envvar=option.variable,
        parser=_naming(max(option.names, key=len), option.parse) if option.parse else None,
    )
    annotation: Any = Annotated[str | None, info] if option.parse else Annotated[hint, info]
    kind = inspect.Parameter.KEYWORD_ONLY
    return _PANELS.index(option.panel), inspect.Parameter(name, kind, default=default, annotation=annotation)


def _naming(flag: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    """Let what an option's text is refused with begin with the option, where it does not name one itself."""

    @functools.wraps(parse)
    def parsed(text: str) -> object:
        try:
            return parse(text)
        except UsageError as error:
            words = str(error)
            raise UsageError(words if words.startswith("--") else f"{flag}: {words}") from error

    return parsed


def with_named_model(endpoint: EndpointSettings, context: typer.Context) -> EndpointSettings:
    """Note whether an option or the environment names the model, which the name itself does not tell."""
    source = context.get_parameter_source("model_model")
    return dataclasses.replace(endpoint, is_model_named=source is not None and source.name != "DEFAULT")


def checked_pages(pages: PageSettings, password_file: Path | None) -> PageSettings:
    """Check the selection of pages, and read the password from its file.

    Raises:
        UsageError: the selection does not read as pages, or the file can't be read.

    """
    from idefics_cli.questions.pages import check_selection

    if pages.selection is not None:
        check_selection(pages.selection)
    if password_file is None:
        return pages
    try:
        with password_file.open("rb") as stream:
            password = stream.read(_PASSWORD_BYTES).split(b"\n")[0].removesuffix(b"\r").decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"--password-file {password_file}: {getattr(error, 'strerror', None) or error}") from error
    return dataclasses.replace(pages, password=password)
