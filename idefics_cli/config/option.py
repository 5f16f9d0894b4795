"""How a setting is given on the command line, and checks that several settings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from idefics_cli.errors import UsageError


class Panel(StrEnum):
    """Where `--help` shows an option; the common ones come first."""

    COMMON = "Options"
    MODEL = "Model"
    ENDPOINT = "Endpoint"
    WORKERS = "Workers"
    GENERATION = "Generation"
    PAGES = "Pages"
    OUTPUT = "Output"
    LIMITS = "Limits"
    MESSAGES = "Messages"


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is given on the command line."""

    help: str
    panel: Panel
    names: tuple[str, ...] = ()
    """`--model`, `-m`; without any, the field's name is the option's."""
    metavar: str | None = None
    default: str | None = None
    """What `--help` shows as the default, where the value itself says too little."""
    variable: str | None = None
    """The environment variable that it is taken from when it is not given."""
    parse: Callable[[str], object] | None = None

    def flags(self, name: str) -> tuple[str, ...]:
        """Return the names of the option of a field, or of a parameter, of this name."""
        return self.names or (flag_of(name),)


def flag_of(name: str) -> str:
    """Return the option that a setting of this name is given by, where nothing else is said."""
    return f"--{name.replace('_', '-')}"


def option_of(hint: object) -> Option | None:
    """Return the option that an annotation describes; None where it describes none."""
    return next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Option)), None)


def positive_or_auto(value: str) -> int | None:
    """Return the number, None for `auto`.

    Raises:
        UsageError: it is neither.

    """
    text = str(value)
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) == 0:
        raise UsageError(f"{text!r} is neither auto nor a number above 0")
    return int(text)


def check_text(flag: str, value: str) -> None:
    """Refuse a text that no tokenizer and no server takes: bytes of a command line that are not UTF-8.

    Raises:
        UsageError: it is one.

    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{flag} is not UTF-8") from None


def check_above_zero(flag: str, value: float | None, what: str = "a number") -> None:
    """Refuse a value of 0 or below.

    Raises:
        UsageError: it is one.

    """
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{flag} takes {what} above 0")
