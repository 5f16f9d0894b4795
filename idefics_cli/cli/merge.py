"""`merge`: the outputs of shards become one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli.console import note, set_up_messages, summary
from idefics_cli.cli.options import PasswordFile, checked_pages, from_settings
from idefics_cli.cli.run import AskedTexts, QuestionsFile, format_of_name, one_of
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    Format,
    MessageSettings,
    Option,
    OutputSettings,
    PageSettings,
    Panel,
    QuestionSettings,
    RunSettings,
)
from idefics_cli.errors import ROWS_FAILED, InputError, UsageError, one_line

if TYPE_CHECKING:
    from idefics_cli.merge import MergeResult


@from_settings(
    without=(
        *("split", "rasterizer", "page_timeout", "max_pixels", "limit", "examples", "shard"),
        *("resume", "retry_failed", "prune", "excel_safe"),
    )
)
def merge(
    outputs: Annotated[list[Path], typer.Argument(metavar="OUTPUT", help="Outputs of run.", show_default=False)],
    pages: PageSettings,
    asked: QuestionSettings,
    output: Callable[..., OutputSettings],
    messages: MessageSettings,
    questions: QuestionsFile = None,
    ask: AskedTexts = None,
    documents: Annotated[
        list[str] | None,
        Option(
            "A document, folder or glob of the run. May be repeated.", Panel.COMMON, ("--document", "-d"), "DOCUMENT"
        ),
    ] = None,
    path: Annotated[
        str, Option("Where rows go; - is stdout.", Panel.COMMON, ("--output", "-o"), metavar="FILE|-")
    ] = "-",
    shards: Annotated[
        int | None,
        Option(
            "How many shards there are, to name those that lack rows.", Panel.COMMON, metavar="N", default="not said"
        ),
    ] = None,
    password_file: PasswordFile = None,
) -> None:
    """Join the outputs of shards: each row once, in the order of the questions where they are given.

    With questions it says what is missing. Exit code 6 when rows failed or are missing, or outputs contradict
    each other, else 0.

    Examples:
    [bold]idefics-cli merge part-*.csv -o answers.csv[/bold]

    [bold]idefics-cli merge part-*.csv -o answers.csv -q questions.csv -d inbox/ --shards 4[/bold]

    """
    set_up_messages(messages, is_dated=not sys.stderr.isatty())
    if shards is not None and shards < 1:
        raise UsageError("--shards takes a number above 0")
    given = one_of(questions, ask or []) if questions or ask else None
    if given is None and (documents or shards):
        raise UsageError("--document and --shards go with -q FILE or --ask: without questions nothing can be missing")
    file = None if path == "-" else Path(path)
    with results_on_stdout() as stdout:
        from idefics_cli import merge as merging

        for one in outputs:
            if one.exists() and not one.is_file():
                what = (
                    "a folder: name the outputs in it" if one.is_dir() else "not a regular file: outputs are read twice"
                )
                raise InputError(f"{one}: {what}")
            if not one.is_file():
                raise InputError(
                    f"{one}: no such file; a shard that was never started has none: leave it out, and give "
                    "-q and --shards to see what is missing"
                )
        form = format_of_name(file) if file is not None else Format.CSV
        written = merging.form_of(outputs)
        form = written if file is None or (form is Format.JSONL and written is Format.OPENAI_BATCH) else form
        settings = RunSettings(
            checked_pages(pages, password_file),
            questions=asked,
            output=output(path=file, format=form),
            messages=messages,
        )
        result = merging.merge(outputs, settings, stdout, documents=documents or [], questions=given, shards=shards)
    _report(result, file, shards)
    if not result.is_whole:
        raise typer.Exit(ROWS_FAILED)


def _report(result: MergeResult, file: Path | None, shards: int | None) -> None:
    for words in result.notes:
        note(words)
    for words in result.conflict_names:
        note(f"conflict: {one_line(words)}")
    for words in result.missing_names:
        note(f"missing: {one_line(words)}")
    if result.missing > len(result.missing_names):
        note(f"missing: ... and {result.missing - len(result.missing_names):,} more")
    for shard, missing in sorted(result.missing_by_shard.items()) if shards else []:
        asked = result.rows_by_shard[shard]
        if missing == asked:
            note(f"shard {shard}/{shards} is missing: none of its {asked:,} rows is there")
        else:
            note(f"shard {shard}/{shards} is incomplete: {missing:,} of its {asked:,} rows are missing")
    if result.missing and not shards:
        note("--shards N says which of N shards the missing rows belong to")
    if result.not_asked:
        note(f"{result.not_asked:,} rows answer none of these questions: left out")
    counts = [f"{result.rows:,} rows", f"{result.failed:,} failed"]
    counts += [f"{result.missing:,} missing"] * bool(result.missing)
    counts += [f"{result.unfinished:,} outputs unfinished"] * bool(result.unfinished)
    counts += [f"{result.conflicts:,} in conflict"] * bool(result.conflicts)
    summary(f"{file if file is not None else 'stdout'}: {', '.join(counts)}", is_failure=not result.is_whole)
