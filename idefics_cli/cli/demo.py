"""`demo`: the main job on the embedded tiny model and samples, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli.console import note, print_table, set_up_messages
from idefics_cli.cli.options import from_settings
from idefics_cli.cli.run import RunWatch
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    TINY_MODEL,
    Device,
    MessageSettings,
    ModelSettings,
    Option,
    OutputSettings,
    Panel,
    RunSettings,
)
from idefics_cli.errors import ROWS_FAILED, InputError, OutputError, one_line

if TYPE_CHECKING:
    from rich.table import Table


@from_settings()
def demo(
    messages: MessageSettings,
    output: Annotated[
        Path,
        Option(
            "Where rows go; the file of an earlier demo is replaced.", Panel.COMMON, ("--output", "-o"), metavar="FILE"
        ),
    ] = Path("demo-answers.csv"),
) -> None:
    """Answer the sample questions over the sample documents with the embedded tiny model.

    Example: [bold]idefics-cli demo[/bold]
    """
    set_up_messages(messages)
    with results_on_stdout() as stdout:
        if _answer(output, messages, stdout):
            raise typer.Exit(ROWS_FAILED)


def _answer(output: Path, messages: MessageSettings, stdout: IO[str]) -> int:
    """Answer the questions, show the answers, and return how many failed."""
    from idefics_cli.cli.report import report_run
    from idefics_cli.engine.checkpoint import samples_folder
    from idefics_cli.results.check import format_of

    _check_is_ours(output)
    samples = samples_folder()
    settings = RunSettings(
        model=ModelSettings(TINY_MODEL, device=Device.CPU),
        output=OutputSettings(output, format_of(output), overwrite=True),
        messages=messages,
    )
    result = RunWatch(settings).run([str(samples / "documents")], str(samples / "questions.csv"), stdout)
    print_table(_answers(output, samples / "documents"), stdout)
    report_run(result, settings)
    note(f"all columns, with the time each answer took: {output}")
    return result.stats.failed


def _check_is_ours(output: Path) -> None:
    """Refuse to replace anything but the output of a demo.

    Raises:
        OutputError: something else is there.

    """
    from idefics_cli.results.read import OutputReader

    if not output.is_file():
        return
    try:
        is_ours = all(row.values["model"] == TINY_MODEL for row in OutputReader(output))
    except InputError:
        is_ours = False
    if not is_ours:
        raise OutputError(f"{output}: exists and is not of an earlier demo; name another output: -o FILE")


def _answers(path: Path, folder: Path) -> Table:
    """Build a table of the questions and answers of an output, its documents named from their folder."""
    from rich.table import Table
    from rich.text import Text

    from idefics_cli.questions.read import accepted_answers
    from idefics_cli.results.metrics import normalized
    from idefics_cli.results.read import OutputReader

    table = Table("document", "page", "question", "answer", "", box=None, pad_edge=False)
    if path.is_file():
        for row in OutputReader(path):
            document = Path(row.text("document"))
            accepted = {normalized(answer) for answer in accepted_answers(row.values.get("answers"))}
            is_right = normalized(row.text("answer")) in accepted
            cells = [str(document.relative_to(folder)), *(row.text(name) for name in ("page", "question", "answer"))]
            table.add_row(*(Text(one_line(cell)) for cell in cells), "" if is_right else "wrong")
    return table
