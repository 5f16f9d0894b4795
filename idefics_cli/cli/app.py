"""The entry point and the commands."""

from __future__ import annotations

import sys

from idefics_cli.cli.exit_codes import exit_code_of, exit_process, handle_signals, open_closed_streams

TYPE_CHECKING = False  # typing, like all else, is imported once the handlers are there
if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer

NAME = "idefics-cli"
COMMANDS = ("ask", "run", "serve", "status", "merge", "export", "eval", "demo", "bench", "prepare", "doctor")
_MODULES = {"eval": "evaluate"}  # where the name is another
_RETRY_FAILED = "--retry-failed"


def main() -> None:
    """Run the command line and end the process."""
    open_closed_streams()
    handle_signals()  # before the imports, so that an interrupt during them is no traceback
    exit_process(exit_code_of(_run))


def _run() -> object:
    arguments = completed(sys.argv[1:]) or ["--help"]
    names = arguments[:1] if arguments[0] in COMMANDS else COMMANDS  # to import the others takes longer than `ask` has
    return make_app(names)(args=arguments, prog_name=NAME, standalone_mode=False)


def completed(arguments: Sequence[str]) -> list[str]:
    """Give `--retry-failed` of `run` its value where it stands alone."""
    arguments = list(arguments)
    if arguments[:1] != ["run"]:
        return arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for index in reversed(range(end)):
        if arguments[index] == _RETRY_FAILED and arguments[index + 1 : index + 2] not in (["all"], ["transient"]):
            arguments.insert(index + 1, "transient")
    return arguments


def make_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """Put commands together, by their names."""
    from importlib import import_module

    import typer

    from idefics_cli.cli import options

    app = typer.Typer(
        name=NAME,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    version = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit.")

    @app.callback(cls=options.Group)
    def before_commands(version: bool = version) -> None:
        """Ask questions of documents with Idefics2 and get answers, with what each one cost."""

    for name in names:
        module = _MODULES.get(name, name)
        command = getattr(import_module(f"idefics_cli.cli.{module}"), module)
        app.command(name, cls=options.Command)(command)
    return app


def _show_version(is_asked: bool) -> None:
    if is_asked:
        import typer

        from idefics_cli import __version__

        print(f"{NAME} {__version__}")
        raise typer.Exit
