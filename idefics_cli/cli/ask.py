"""`ask`: questions of a few documents, answers on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli.console import log, note, one_line, set_up_messages
from idefics_cli.cli.options import AsJson, PasswordFile, checked_pages, from_settings
from idefics_cli.cli.progress import RunState, progress_line
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    MessageSettings,
    ModelSettings,
    Option,
    PageSettings,
    Panel,
    QuestionSettings,
    RunSettings,
)
from idefics_cli.errors import ROWS_FAILED, InputError, UsageError

if TYPE_CHECKING:
    from idefics_cli.records import Row
    from idefics_cli.session import Session

_SILENT_SECONDS = 2.0
_ADDRESS = ("http://", "https://")


@from_settings(without=("batch_size", "columns", "limit", "root", "allow_empty", "page_timeout", "max_pixels"))
def ask(
    *,
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOCUMENT",
            help="Files, folders, globs, addresses (--allow-urls), or - for stdin.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="The question, last; with -q this is one more document.", show_default=False
        ),
    ],
    pages: PageSettings,
    model: ModelSettings,
    allowed: QuestionSettings,
    messages: MessageSettings,
    questions: Annotated[
        list[str] | None,
        Option(
            "A question, in the place of the last argument. May be repeated.",
            Panel.COMMON,
            ("--question", "-q"),
            metavar="QUESTION",
        ),
    ] = None,
    as_json: AsJson = False,
    password_file: PasswordFile = None,
) -> None:
    """Ask questions of documents, and print each answer on a line of its own.

    The answers of several documents begin with the document's name. With --json a line is the whole row.

    Examples:
    [bold]idefics-cli ask invoice.pdf "What is the total?"[/bold]

    [bold]idefics-cli ask inbox/*.pdf -q "What is the total?" -q "What is the date?"[/bold]

    """
    set_up_messages(messages)
    names, texts = split_words([*(documents or []), question], questions or [])
    settings = RunSettings(checked_pages(pages, password_file), model, allowed, messages=messages)
    with results_on_stdout() as stdout:
        if _answer(names, texts, settings, stdout, as_json=as_json):
            raise typer.Exit(ROWS_FAILED)


def split_words(words: Sequence[str], questions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the documents and the questions of a command line.

    Raises:
        UsageError: there is no question, or it does not come last.
        InputError: a question stands among the documents.

    """
    names, texts = list(words), list(questions)
    if not texts:
        if names[-1] and _is_file(names[-1]):
            raise UsageError(f"{names[-1]!r} is a file; the question comes last: ask DOCUMENT... QUESTION")
        if len(names) == 1:
            raise UsageError(f"no question for {names[0]!r}: ask DOCUMENT... QUESTION")
        texts = [names.pop()]
    for name in names:
        if (" " in name.strip() or name.endswith("?")) and not _is_file(name) and not _is_pattern(name):
            raise InputError(f"{name!r}: no such file or folder; several questions are asked with -q, each its own")
    return names, texts


def _is_file(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _is_pattern(name: str) -> bool:
    return any(sign in name.rstrip("?") for sign in "*?[") or name.lower().startswith(_ADDRESS)


def _answer(
    names: Sequence[str], texts: Sequence[str], settings: RunSettings, stdout: IO[str], *, as_json: bool
) -> bool:
    """Print the answers as they are done; says whether any failed."""
    from idefics_cli.inputs import read_inputs
    from idefics_cli.pipeline import Progress
    from idefics_cli.results.write import json_line, row_values
    from idefics_cli.session import Session

    inputs = read_inputs(names, texts, settings)
    for words in inputs.notes:
        note(words)
    is_any_failed = False
    state = RunState(inputs.total, progress=Progress())
    with Session(settings=settings) as session:
        for words in session.engine.info.notes:
            note(words)
        session.engine.start()  # the weights are loaded while the first pages are rendered
        for setting, value in session.engine.info.settings.items():
            log.info("%s: %s", setting, value)
        printer = _Printer(session, (inputs.total or 0) > len(texts))
        quiet = settings.messages.quiet
        with progress_line(state.words, state=state, delay=_SILENT_SECONDS, quiet=quiet) as line:
            for row in session.rows(inputs, progress=state.progress):
                text = json_line(row_values(row)) if as_json else printer.line(row)
                with line.hidden():
                    stdout.write(text)
                    stdout.flush()
                    printer.messages(row, is_whole=as_json)
                is_any_failed |= row.status == "failed"
    return is_any_failed


class _Printer:
    """Prints answers for people, and for `$(...)` of a shell."""

    def __init__(self, session: Session, has_several_documents: bool) -> None:
        self._session = session
        self._is_named = has_several_documents
        self._pages: tuple[str, int] = "", 0

    def line(self, row: Row) -> str:
        """Return the answer, named by what else could have been meant; nothing for a failed row."""
        if row.status == "failed":
            return ""
        place = [row.document] if self._is_named else []
        is_each = self._session.settings.pages.across == "each"
        if (self._is_named or is_each) and self._has_several_pages(row):
            place.append(f"page {row.page}")
        return f"{', '.join(place)}: {one_line(row.answer)}\n" if place else f"{one_line(row.answer)}\n"

    def messages(self, row: Row, *, is_whole: bool) -> None:
        """Say on stderr why a row failed, and what its answer should be read with."""
        if row.status == "failed":
            log.error("%s: %s", row.document, row.error)
        elif row.warning and not is_whole:
            log.warning("%s: %s", row.document, row.warning)
        if row.status == "ok":
            log.info("%s, page %s: answered in %.0f ms", row.document, row.page, row.latency_ms or 0.0)
            if not self._is_named and not is_whole and sys.stderr.isatty() and row.page != "1":
                note(f"from page {row.page}")

    def _has_several_pages(self, row: Row) -> bool:
        if row.page != "1":
            return True
        from idefics_cli.documents.page import DocumentInfo
        from idefics_cli.documents.pool import result_of
        from idefics_cli.records import Document

        if self._pages[0] != row.document:
            document = Document(row.document, row.document if _is_file(row.document) else None)
            try:
                pages = result_of(self._session.pool.open(document), DocumentInfo).pages if document.path else 1
            except Exception:
                pages = 1
            self._pages = row.document, pages
        return self._pages[1] > 1
