"""`status`: what an output holds, and what it lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from idefics_cli.cli.console import note, print_table, set_up_messages
from idefics_cli.cli.options import AsJson, PasswordFile, checked_pages, from_settings
from idefics_cli.cli.run import AskedTexts, Documents, QuestionsFile, one_of
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import MessageSettings, Option, PageSettings, Panel, QuestionSettings, RunSettings
from idefics_cli.errors import ROWS_FAILED, InputError, UsageError, one_line

if TYPE_CHECKING:
    from idefics_cli.results.status import OutputStatus

_SHOWN = 20  # missing rows that are named


@dataclass(slots=True)
class _Missing:
    """Rows that questions ask for and an output lacks."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    """The first few."""
    unasked: int = 0
    """Rows of the output that none of the questions asks for."""


@from_settings(without=("split", "rasterizer", "page_timeout", "max_pixels", "limit", "examples"))
def status(
    output: Annotated[Path, typer.Argument(help="An output of run.", show_default=False)],
    pages: PageSettings,
    asked: QuestionSettings,
    messages: MessageSettings,
    documents: Documents = None,
    questions: QuestionsFile = None,
    ask: AskedTexts = None,
    list_failed: Annotated[
        bool,
        Option(
            "List the failed rows instead, a line each; with --json the rows themselves.", Panel.COMMON, ("--failed",)
        ),
    ] = False,
    as_json: AsJson = False,
    password_file: PasswordFile = None,
) -> None:
    """Say what an output holds, and with the questions of a run what it lacks; no model is needed.

    Exit code 6 when rows failed or are missing, else 0.

    Examples:
    [bold]idefics-cli status answers.csv[/bold]

    [bold]idefics-cli status answers.csv inbox/ -q questions.csv[/bold]

    [bold]idefics-cli status answers.csv --failed[/bold]

    """
    set_up_messages(messages)
    if list_failed and (documents or questions or ask):
        raise UsageError("--failed lists rows of the output: it takes neither documents nor questions")
    with results_on_stdout() as stdout:
        from idefics_cli.results.status import read_status

        if not output.is_file():
            raise InputError(f"{output}: {'a folder, not an output' if output.is_dir() else 'no such file'}")
        if list_failed:
            if _list_failed(output, stdout, as_json=as_json):
                raise typer.Exit(ROWS_FAILED)
            return
        found = read_status(output)
        missing = None
        if documents or questions or ask:
            settings = RunSettings(checked_pages(pages, password_file), questions=asked, messages=messages)
            missing = _missing(documents or [], one_of(questions, ask or []), settings, found)
        if as_json:
            print(json.dumps(_facts(output, found, missing), ensure_ascii=False), file=stdout)
        else:
            _print(output, found, missing, stdout)
        if found.failed or (missing and missing.count):
            raise typer.Exit(ROWS_FAILED)


def _list_failed(output: Path, stdout: IO[str], *, as_json: bool) -> int:
    """Print the failed rows of an output; returns how many they are."""
    from idefics_cli.results.read import OutputReader

    count = 0
    for row in OutputReader(output):
        if not row.is_failed:
            continue
        count += 1
        if as_json:
            print(json.dumps(row.values, ensure_ascii=False), file=stdout)
        else:
            page = f", page {row.text('page')}" if row.text("page") else ""
            print(one_line(f"{row.text('document')}{page}: {row.text('question')}: {row.text('error')}"), file=stdout)
    return count


def _missing(
    documents: Sequence[str], questions: str | Sequence[str], settings: RunSettings, found: OutputStatus
) -> _Missing:
    """Look for the rows that a run with these questions would add."""
    from idefics_cli.asked import asked_rows
    from idefics_cli.inputs import read_inputs

    missing = _Missing()
    inputs = read_inputs(documents, questions, settings)
    for words in inputs.notes:
        note(words)
    for row in asked_rows(inputs, settings):
        if not found.answered.take(row.key):
            missing.count += 1
            if missing.count <= _SHOWN:
                missing.names.append(one_line(row.words))
    missing.unasked = found.answered.left
    return missing


def _facts(output: Path, found: OutputStatus, missing: _Missing | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "output": str(output),
        "rows": found.rows,
        "failed": found.failed,
        "failed_by_kind": dict(found.failures.most_common()),
        "last_answered_at": found.last_answered_at or None,
        "settings": dict(found.settings),
    }
    if missing is not None:
        facts |= {"missing": missing.count, "first_missing": missing.names, "not_asked": missing.unasked}
    return facts


def _print(output: Path, found: OutputStatus, missing: _Missing | None, stdout: IO[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("output", Text(str(output)))
    table.add_row("rows", f"{found.rows:,}")
    table.add_row("failed", f"{found.failed:,}")
    for kind, count in found.failures.most_common():
        table.add_row("", Text(f"{count:,} {kind}"))
    table.add_row("last answered", found.last_answered_at or "never")
    if len(found.settings) > 1:
        table.add_row("settings", f"{len(found.settings)} different ones")
    if missing is not None:
        table.add_row("missing", f"{missing.count:,}")
        for name in missing.names:
            table.add_row("", Text(name))
        if missing.count > len(missing.names):
            table.add_row("", f"... and {missing.count - len(missing.names):,} more")
        if missing.unasked:
            table.add_row("not asked", f"{missing.unasked:,} rows answer none of these questions")
    print_table(table, stdout)
