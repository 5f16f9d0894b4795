"""`run`: many documents, many questions, a row each."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli.console import log, note, set_up_messages
from idefics_cli.cli.exit_codes import Interrupted
from idefics_cli.cli.options import PasswordFile, checked_pages, from_settings, with_named_model
from idefics_cli.cli.progress import RunState, progress_line
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    ClientSettings,
    EndpointSettings,
    Format,
    MaxFailures,
    MessageSettings,
    ModelSettings,
    Option,
    OutputSettings,
    PageSettings,
    Panel,
    QuestionSettings,
    RunSettings,
    WorkerSettings,
)
from idefics_cli.errors import ROWS_FAILED, UsageError

if TYPE_CHECKING:
    from idefics_cli.batch import BatchResult
    from idefics_cli.inputs import Inputs
    from idefics_cli.pipeline import Progress
    from idefics_cli.records import Row
    from idefics_cli.session import Session
    from idefics_cli.workers.state import WorkerShare

Documents = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DOCUMENT",
        help="Files, folders (recursive), globs, addresses (--allow-urls); questions may name others.",
        show_default=False,
    ),
]
QuestionsFile = Annotated[
    str | None,
    Option("CSV or JSONL of questions; - is stdin.", Panel.COMMON, ("--questions", "-q"), metavar="FILE|-"),
]
AskedTexts = Annotated[
    list[str] | None,
    Option("A question, in the place of a file. May be repeated.", Panel.COMMON, metavar="QUESTION"),
]


@from_settings(without=("keep",))
def run(
    context: typer.Context,
    pages: PageSettings,
    model: ModelSettings,
    asked: QuestionSettings,
    output: Callable[..., OutputSettings],
    workers: WorkerSettings,
    server: ClientSettings,
    endpoint: EndpointSettings,
    messages: MessageSettings,
    documents: Documents = None,
    questions: QuestionsFile = None,
    ask: AskedTexts = None,
    path: Annotated[
        str, Option("Where rows go; - is stdout.", Panel.COMMON, ("--output", "-o"), metavar="FILE|-")
    ] = "-",
    form: Annotated[
        Format | None,
        Option("How rows are written.", Panel.OUTPUT, ("--format",), default="by the output's ending, else csv"),
    ] = None,
    dry_run: Annotated[bool, Option("Say what would be done; ask and write nothing.", Panel.COMMON)] = False,
    max_failures: Annotated[
        MaxFailures | None,
        Option(
            "Stop once more rows have failed.", Panel.LIMITS, metavar="N|P%", default="never", parse=MaxFailures.parse
        ),
    ] = None,
    password_file: PasswordFile = None,
) -> None:
    """Ask many documents many questions; every question becomes a row, answered or failed.

    Examples:
    [bold]idefics-cli run inbox/ --ask "What is the total?" -o answers.csv[/bold]

    [bold]idefics-cli run inbox/ -q questions.csv -o answers.csv --resume[/bold]

    [bold]producer | idefics-cli run -q - -o - --format jsonl | consumer[/bold]

    """
    set_up_messages(messages, is_dated=not sys.stderr.isatty())
    given = one_of(questions, ask or [])
    file = None if path == "-" else Path(path)
    with results_on_stdout() as stdout:
        settings = RunSettings(
            checked_pages(pages, password_file),
            model,
            asked,
            output(path=file, format=form or format_of_name(file)),
            messages,
            workers,
            server,
            max_failures,
            with_named_model(endpoint, context),
        )
        if dry_run:
            from idefics_cli.cli.report import report_dry_run

            is_failure = report_dry_run(documents or [], given, settings, stdout)
        else:
            show_table = file is None and form is None and stdout.isatty()
            is_failure = bool(_run(documents or [], given, settings, stdout, show_table=show_table))
        if is_failure:
            raise typer.Exit(ROWS_FAILED)


def one_of(file: str | None, texts: Sequence[str]) -> str | Sequence[str]:
    """Return where the questions are.

    Raises:
        UsageError: nowhere, or in two places.

    """
    if bool(file) == bool(texts):
        raise UsageError("questions come from -q FILE (- is stdin), or one by one from --ask: give one of the two")
    return file or texts


def format_of_name(file: Path | None) -> Format:
    """Return the format that an output's name asks for; raises UsageError as `format_of`."""
    from idefics_cli.results.check import format_of

    return format_of(file)


def _run(
    documents: Sequence[str],
    questions: str | Sequence[str],
    settings: RunSettings,
    stdout: IO[str],
    *,
    show_table: bool,
) -> int:
    """Run a batch and say what came of it; returns how many rows failed."""
    from idefics_cli.cli.report import RowTable, report_run

    if not show_table:
        result = RunWatch(settings).run(documents, questions, stdout)
    else:
        table = RowTable(stdout)
        with Path(os.devnull).open("w") as nowhere:
            result = RunWatch(settings, table.print).run(documents, questions, nowhere)
        note("whole rows: -o FILE writes them to a file, --format csv or jsonl to the terminal")
    report_run(result, settings)
    return result.stats.failed


class RunWatch:
    """Follows a batch on the terminal."""

    def __init__(self, settings: RunSettings, on_row: Callable[[Row], None] | None = None) -> None:
        self._settings, self._on_row = settings, on_row
        self._state = RunState(limit=settings.questions.limit)
        self._failures: Counter[str] = Counter()
        self._line = progress_line(self._state.words, state=self._state, quiet=settings.messages.quiet)

    def run(self, documents: Sequence[str], questions: str | Sequence[str], stdout: IO[str]) -> BatchResult:
        """Run the batch.

        Raises:
            IdeficsCliError: as `batch.run`.
            Interrupted: with what is done.

        """
        from idefics_cli import batch

        try:
            with self._line as self._shown:
                return batch.run(
                    documents,
                    questions,
                    self._settings,
                    stdout,
                    on_start=self._start,
                    on_row=self._show,
                    on_note=self._note,
                    on_shares=self._log_shares,
                    on_detail=log.info,
                )
        except Interrupted as error:
            error.detail = self._what_is_done()
            raise

    def _start(self, inputs: Inputs, session: Session) -> None:
        for words in (*inputs.notes, *session.engine.info.notes):
            note(words)
        for name, value in session.engine.info.settings.items():
            log.info("%s: %s", name, value)
        log.info("page processes: %d", session.pool.workers)
        self._state.total = None if self._settings.pages.across == "each" else inputs.total

    def _show(self, row: Row, progress: Progress) -> None:
        self._state.progress = progress
        if row.status == "failed":
            log.info("%s: %s", row.document, row.error)
        else:
            log.info("%s, page %s: answered in %.0f ms", row.document, row.page, row.latency_ms or 0.0)
        if self._on_row is not None:
            with self._shown.hidden():
                self._on_row(row)

    def _note(self, words: str) -> None:
        with self._shown.hidden():
            note(words)

    def _log_shares(self, shares: list[WorkerShare]) -> None:
        from idefics_cli.cli.report import share_words

        for share in shares:
            log.info("%s", share_words(share))

    def _what_is_done(self) -> str:
        path, rows = self._settings.output.path, self._state.progress.rows if self._state.progress else 0
        if path is None or self._settings.output.overwrite or not (rows or path.exists()):
            return f" after {rows:,} rows"
        return f": {rows:,} new rows are in {path}; the same command with --resume goes on from there"
