"""`export`: questions with their pages as files that other programs answer."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from idefics_cli.cli.console import note, set_up_messages, summary
from idefics_cli.cli.options import PasswordFile, checked_pages, from_settings
from idefics_cli.cli.progress import progress_line
from idefics_cli.cli.run import AskedTexts, Documents, QuestionsFile, one_of
from idefics_cli.config import (
    Across,
    GenerationSettings,
    MessageSettings,
    Option,
    PageSettings,
    Panel,
    QuestionSettings,
    RunSettings,
    check_above_zero,
)
from idefics_cli.errors import ROWS_FAILED, UsageError, one_line

_NOT_IN_THE_FORM = ("min_new_tokens", "repetition_penalty", "num_beams", "choices")


class ExportForm(StrEnum):
    """What is written."""

    OPENAI_BATCH = "openai-batch"


@from_settings(
    without=("split", "allow_empty", *_NOT_IN_THE_FORM),
    defaults={"across": Across.TOGETHER, "max_new_tokens": 64, "temperature": 0.0},
)
def export(
    pages: PageSettings,
    generation: GenerationSettings,
    asked: QuestionSettings,
    messages: MessageSettings,
    documents: Documents = None,
    questions: QuestionsFile = None,
    ask: AskedTexts = None,
    to: Annotated[ExportForm | None, Option("What is written; needed.", Panel.COMMON)] = None,
    output: Annotated[
        Path | None,
        Option(
            "The file; several, at 50,000 lines or 200 MB, are numbered: NAME-00001.jsonl. Needed.",
            Panel.COMMON,
            ("--output", "-o"),
            metavar="FILE",
        ),
    ] = None,
    model: Annotated[
        str, Option("The model, as the server that is to answer calls it; needed.", Panel.COMMON, ("--model", "-m"))
    ] = "",
    longest_edge: Annotated[
        int, Option("Longest edge of a page, in pixels; larger ones are scaled down.", Panel.PAGES, metavar="N")
    ] = 1536,
    password_file: PasswordFile = None,
) -> None:
    """Write questions with their pages as OpenAI batch files, for other servers to answer.

    A line's custom_id is the key of the row that run would write. Exit code 6 when questions had to be left out, such
    as those about a document that can't be read.

    Example: [bold]idefics-cli export inbox/ -q questions.csv --to openai-batch --model NAME -o batch.jsonl[/bold]
    """
    set_up_messages(messages, is_dated=not sys.stderr.isatty())
    if to is None or output is None or not model.strip():
        raise UsageError(
            "export needs what to write, where to, and the model's name: --to openai-batch -o FILE --model NAME"
        )
    if str(output) == "-":
        raise UsageError("-o -: there may be several files, and none is whole before the end: name a file")
    check_above_zero("--longest-edge", longest_edge)
    given = one_of(questions, ask or [])
    from idefics_cli.export import SHOWN, BatchExport, ExportResult, export_batch

    settings = RunSettings(checked_pages(pages, password_file), questions=asked, messages=messages)
    how = BatchExport(model.strip(), generation, longest_edge)
    result = ExportResult()
    with progress_line(lambda: f"{_counted(result.lines, 'line')} written", quiet=messages.quiet):
        export_batch(documents or [], given, output, settings, how, result)
    for words in result.notes:
        note(words)
    for words in result.left_out_names:
        note(f"left out: {one_line(words)}")
    if result.left_out > SHOWN:
        note(f"left out: ... and {result.left_out - SHOWN:,} more")
    names = ", ".join(map(str, result.paths)) or f"{output}: not written"
    counts = [_counted(result.lines, "line")]
    counts += [f"{_counted(result.left_out, 'question')} left out"] * bool(result.left_out)
    summary(f"{names}: {', '.join(counts)}", is_failure=bool(result.left_out))
    if result.left_out:
        raise typer.Exit(ROWS_FAILED)


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
