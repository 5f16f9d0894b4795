"""`ask`: questions of a few documents, answers on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Annotated

import typer

from idefics_cli.cli.answers import AnswerPrinter, is_file
from idefics_cli.cli.console import log, note, set_up_messages
from idefics_cli.cli.options import AsJson, PasswordFile, checked_pages, from_settings, with_named_model
from idefics_cli.cli.progress import RunState, progress_line
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    Across,
    ClientSettings,
    EndpointSettings,
    MessageSettings,
    ModelSettings,
    Option,
    PageSettings,
    Panel,
    QuestionSettings,
    RunSettings,
)
from idefics_cli.errors import ROWS_FAILED, InputError, UsageError

_SILENT_SECONDS = 2.0
_ADDRESS = ("http://", "https://")


@from_settings(without=("batch_size", "columns", "limit", "root", "allow_empty", "page_timeout", "max_pixels"))
def ask(
    *,
    context: typer.Context,
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
    server: ClientSettings,
    endpoint: EndpointSettings,
    questions: Annotated[
        list[str] | None,
        Option(
            "A question, in the place of the last argument. May be repeated.",
            Panel.COMMON,
            ("--question", "-q"),
            metavar="QUESTION",
        ),
    ] = None,
    together: Annotated[
        bool, Option("Read all documents in one prompt, in their order: one answer.", Panel.PAGES)
    ] = False,
    chat: Annotated[
        bool, Option("Go on with questions from stdin, a line each, until an empty one or /quit.", Panel.COMMON)
    ] = False,
    as_json: AsJson = False,
    password_file: PasswordFile = None,
) -> None:
    """Ask questions of documents, and print each answer on a line of its own.

    The answers of several documents begin with the document's name, those of several questions with the
    question. With --json a line is the whole row.
    With --chat questions and answers are a conversation about the same pages.

    Examples:
    [bold]idefics-cli ask invoice.pdf "What is the total?"[/bold]

    [bold]idefics-cli ask inbox/*.pdf -q "What is the total?" -q "What is the date?"[/bold]

    [bold]idefics-cli ask --together old.pdf new.pdf "Which is dearer?"[/bold]

    """
    set_up_messages(messages)
    names, texts = split_words([*(documents or []), question], questions or [], is_chat=chat)
    _check_options(names, pages, together=together, chat=chat)
    settings = RunSettings(
        checked_pages(pages, password_file),
        model,
        allowed,
        messages=messages,
        server=server,
        endpoint=with_named_model(endpoint, context),
    )
    with results_on_stdout() as stdout:
        if chat:
            from idefics_cli.cli.chat import chat_about as answer
        else:
            answer = _answer
        if answer(names, texts, settings, stdout, together=together, as_json=as_json):
            raise typer.Exit(ROWS_FAILED)


def _check_options(names: Sequence[str], pages: PageSettings, *, together: bool, chat: bool) -> None:
    if pages.across is Across.EACH and (together or chat):
        flag, words = ("--together", "all pages one") if together else ("--chat", "each question one")
        raise UsageError(f"{flag} gives {words} answer: leave --across each out")
    if chat and "-" in names:
        raise UsageError("--chat reads its questions from stdin: give the document as a file")


def split_words(
    words: Sequence[str], questions: Sequence[str], *, is_chat: bool = False
) -> tuple[list[str], list[str]]:
    """Return the documents and the questions of a command line; a chat may begin without a question.

    Raises:
        UsageError: there is no question, or it does not come last.
        InputError: a question stands among the documents.

    """
    names, texts = list(words), list(questions)
    if not texts and not (is_chat and (len(names) == 1 or is_file(names[-1]))):
        if names[-1] and is_file(names[-1]):
            raise UsageError(f"{names[-1]!r} is a file; the question comes last: ask DOCUMENT... QUESTION")
        if len(names) == 1:
            raise UsageError(f"no question for {names[0]!r}: ask DOCUMENT... QUESTION")
        texts = [names.pop()]
    for name in names:
        if (" " in name.strip() or name.endswith("?")) and not is_file(name) and not _is_pattern(name):
            raise InputError(f"{name!r}: no such file or folder; several questions are asked with -q, each its own")
    return names, texts


def _is_pattern(name: str) -> bool:
    return any(sign in name.rstrip("?") for sign in "*?[") or name.lower().startswith(_ADDRESS)


def _answer(
    names: Sequence[str], texts: Sequence[str], settings: RunSettings, stdout: IO[str], *, together: bool, as_json: bool
) -> bool:
    """Print the answers as they are done; says whether any failed."""
    from idefics_cli.inputs import read_inputs
    from idefics_cli.local_socket.answers import Answers
    from idefics_cli.progress import Progress
    from idefics_cli.results.lines import json_line, row_values

    inputs = read_inputs(names, texts, settings, together=together)
    for words in inputs.notes:
        note(words)
    is_any_failed = False
    state = RunState(inputs.total, progress=Progress())
    with Answers(settings, log.info, note) as answers:
        for words in answers.notes:
            note(words)
        answers.start()  # the weights are loaded while the first pages are rendered
        for setting, value in answers.engine_settings.items():
            log.info("%s: %s", setting, value)
        is_named = (inputs.total or 0) > len(texts)
        printer = AnswerPrinter(answers, is_named=is_named, is_together=together, asks_several=len(texts) > 1)
        quiet = settings.messages.quiet
        with progress_line(state.words, state=state, delay=_SILENT_SECONDS, quiet=quiet) as line:
            for row in answers.rows(inputs, progress=state.progress):
                text = json_line(row_values(row)) if as_json else printer.line(row)
                with line.hidden():
                    stdout.write(text)
                    stdout.flush()
                    printer.messages(row, is_whole=as_json)
                is_any_failed |= row.status == "failed"
    return is_any_failed
