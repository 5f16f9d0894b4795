"""`ask --chat`: a conversation about the same pages; their encoding, and what of the prompt they are, stays cached."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from idefics_cli.cli.answers import AnswerPrinter
from idefics_cli.cli.console import log, note
from idefics_cli.cli.progress import progress_line
from idefics_cli.config import RunSettings
from idefics_cli.errors import InputError, ModelError, UsageError

if TYPE_CHECKING:
    from idefics_cli.local_socket.answers import Answers
    from idefics_cli.records import Job, Turn

_ENDS = ("", "/quit")
_LONGEST_LINE = 16 * 1024 * 1024
_SILENT_SECONDS = 2.0


def chat_about(
    names: Sequence[str], texts: Sequence[str], settings: RunSettings, stdout: IO[str], *, together: bool, as_json: bool
) -> bool:
    """Print the answers to questions, and to those that follow on stdin; says whether any failed.

    Args:
        names: of documents.
        texts: the first questions, if there are any.
        settings: of the run.
        stdout: takes the answers.
        together: whether all documents are read in one prompt.
        as_json: whether whole rows are printed.

    Raises:
        InputError: no document, or a line of stdin that is no text.
        ModelError: the checkpoint can't be run, or can't go on after an answer.
        UsageError: several documents that are not read together.

    """
    from idefics_cli.inputs import read_inputs
    from idefics_cli.local_socket.answers import Answers

    # What is asked may be known only later: one question stands for those to come.
    inputs = read_inputs(names, texts or ["?"], settings, together=together)
    jobs = list(inputs.jobs)
    if (documents := len(jobs) // max(1, len(texts))) > 1:
        raise UsageError(f"--chat is about one document, not {documents}: --together reads them in one prompt")
    for words in inputs.notes:
        note(words)
    with Answers(settings, log.info, note) as answers:
        if answers.chat_refusal:
            raise ModelError(f"--chat: {answers.chat_refusal}")
        for words in answers.notes:
            note(words)
        answers.start()  # the weights are loaded while the first question is typed
        for setting, value in answers.engine_settings.items():
            log.info("%s: %s", setting, value)
        printer = AnswerPrinter(answers, is_named=False, is_together=together)
        return _Chat(answers, jobs[0], printer, stdout, as_json=as_json).run(
            [job.question.text for job in jobs[: len(texts)]]
        )


class _Chat:
    """A conversation: its turns so far, and the document that it is about."""

    def __init__(self, answers: Answers, job: Job, printer: AnswerPrinter, stdout: IO[str], *, as_json: bool) -> None:
        self._answers, self._job, self._printer = answers, job, printer
        self._stdout, self._as_json = stdout, as_json
        self._earlier: tuple[Turn, ...] = ()
        self._is_any_failed = False

    def run(self, texts: Sequence[str]) -> bool:
        """Ask these questions, and those of stdin; says whether any failed."""
        for text in texts:
            self._ask(text)
        for text in _lines_of_stdin():
            self._ask(text)
        return self._is_any_failed

    def _ask(self, text: str) -> None:
        """Ask one question; a turn that failed is no part of the conversation."""
        from idefics_cli.inputs import Inputs
        from idefics_cli.records import Turn
        from idefics_cli.results.lines import json_line, row_values

        inputs = Inputs([self._next_job(text)], (), 1, [], [])
        quiet = self._answers.settings.messages.quiet
        with progress_line(lambda: "answering", delay=_SILENT_SECONDS, quiet=quiet):
            (row,) = self._answers.rows(inputs)
        self._stdout.write(json_line(row_values(row)) if self._as_json else self._printer.line(row))
        self._stdout.flush()
        self._printer.messages(row, is_whole=self._as_json)
        if row.status == "failed":
            self._is_any_failed = True
        else:
            self._earlier = (*self._earlier, Turn("user", (text,)), Turn("assistant", (row.answer,)))

    def _next_job(self, text: str) -> Job:
        from idefics_cli.questions.messages import shown_first
        from idefics_cli.records import Turn

        question = dataclasses.replace(self._job.question, text=text)
        if self._earlier:
            turns = (*self._earlier, Turn("user", (text,)))
            question = dataclasses.replace(question, turns=shown_first(turns, question.documents))
        return dataclasses.replace(self._job, question=question)


def _lines_of_stdin() -> Iterator[str]:
    """Yield what is typed or comes through a pipe, up to an empty line, /quit or the end.

    Raises:
        InputError: a line is too long or not UTF-8.

    """
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    number = 0
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline(_LONGEST_LINE)
        number += 1
        if not line and is_terminal:
            print(file=sys.stderr)
        if len(line) == _LONGEST_LINE:
            raise InputError(f"<stdin>:{number}: longer than {_LONGEST_LINE >> 20} MB")
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(f"<stdin>:{number}: not UTF-8 (byte 0x{line[error.start]:02x})") from error
        if text in _ENDS:
            return
        yield text
