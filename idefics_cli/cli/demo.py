"""`demo`: the main job on the embedded tiny model and samples, with nothing to download."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.run import answer_questions
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import TINY_MODEL, Device, ModelSettings, OutputSettings, RunSettings
from idefics_cli.errors import ROWS_FAILED


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where rows go; a file of an earlier demo is replaced.")
    ] = Path("demo-answers.csv"),
) -> None:
    """Answer the sample questions over the sample documents with the embedded tiny model.

    Example: [bold]idefics-cli demo[/bold]
    """
    with exit_codes(), results_on_stdout() as stdout:
        from idefics_cli.engine.checkpoint import samples_folder

        samples = samples_folder()
        settings = RunSettings(
            model=ModelSettings(TINY_MODEL, device=Device.CPU),
            output=OutputSettings(output, overwrite=True),
        )
        summary = answer_questions([str(samples / "documents")], str(samples / "questions.csv"), settings, stdout)
        Console(file=stdout, width=None if stdout.isatty() else 120).print(_answers(output, samples / "documents"))
        print(f"{summary.rows} rows with what each cost: {output}", file=sys.stderr)
        if summary.failed:
            raise typer.Exit(ROWS_FAILED)


def _answers(path: Path, folder: Path) -> Table:
    """Build a table of the questions and answers of an output, its documents named from their folder."""
    import pandas  # half a second that `--help` does not wait for

    rows = pandas.read_csv(path, dtype=str, keep_default_na=False)
    table = Table("document", "page", "question", "answer", "", box=None, pad_edge=False)
    for row in rows.to_dict("records"):
        right = row["answer"].strip().lower() in (part.strip().lower() for part in row["answers"].split("|"))
        table.add_row(
            str(Path(row["document"]).relative_to(folder)),
            row["page"],
            row["question"],
            row["answer"],
            "" if right else "wrong",
        )
    return table
