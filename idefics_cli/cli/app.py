"""The commands, and what stands before them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from idefics_cli.cli.ask import ask
from idefics_cli.cli.bench import bench
from idefics_cli.cli.demo import demo
from idefics_cli.cli.doctor import doctor
from idefics_cli.cli.evaluate import evaluate
from idefics_cli.cli.run import run
from idefics_cli.config import RetryFailed

app = typer.Typer(
    name="idefics-cli",
    help="Ask questions of documents with Idefics2 and get answers, with what each one cost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from idefics_cli import __version__

        typer.echo(f"idefics-cli {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ask questions of documents with Idefics2 and get answers, with what each one cost."""


app.command("ask")(ask)
app.command("run")(run)
app.command("demo")(demo)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("doctor")(doctor)


def main() -> None:
    """Entry point of `idefics-cli`."""
    app(args=with_values(sys.argv[1:]))


def with_values(arguments: Sequence[str]) -> list[str]:
    """Give options that may stand alone their value: `--retry-failed` is `--retry-failed passing`."""
    completed = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        completed.append(argument)
        if argument == "--retry-failed" and following not in list(RetryFailed):
            completed.append(RetryFailed.PASSING)
    return completed
