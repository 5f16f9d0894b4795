"""What a run is asked: questions from a file, a pipe or the command line, paired with their documents."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from idefics_cli.config import Across, QuestionSettings, RunSettings
from idefics_cli.documents import discover
from idefics_cli.documents.given import STDIN, STDIN_NAME, find_given, open_descriptor
from idefics_cli.errors import InputError, UsageError
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.lines import Record
from idefics_cli.questions.messages import MOST_TOGETHER
from idefics_cli.questions.pair import Pairing, pair
from idefics_cli.questions.read import ReadRequest, read_stream
from idefics_cli.records import Document, DocumentPart, Job, Question

if TYPE_CHECKING:
    from idefics_cli.examples import Example, Examples

_WAITING_LINES = 100


@dataclass(frozen=True, slots=True)
class Inputs:
    """The questions of a run, paired with their documents."""

    jobs: Iterable[Job]
    """Of a file, those of one document together; of a pipe, as its lines come."""
    columns: tuple[str, ...]
    """The user's own columns; of a pipe, those that are known from the lines that are there at the start."""
    total: int | None
    """Jobs; None for a pipe."""
    notes: list[str]
    """What to tell the user before the start."""
    paths: list[Path]
    """The files that are read, none of which may be the output."""
    is_batch: bool = False
    """Whether the questions are requests in the form of OpenAI batch files."""


def read_inputs(
    documents: Sequence[str], questions: str | Sequence[str], settings: RunSettings, *, together: bool = False
) -> Inputs:
    """Read and pair questions: a file is checked whole, a pipe is read as its lines come.

    Args:
        documents: files, folders, globs, addresses and `-` (stdin) of the command line.
        questions: the name of a file, `-` for stdin, or the questions themselves.
        settings: of the run.
        together: whether each of the questions themselves is about all documents in one prompt.

    Raises:
        InputError: they can't be read, or can't be asked.
        UsageError: a `--column` or `--root` that can't be.

    """
    columns = ColumnNames(settings.questions.columns)
    if questions == STDIN and STDIN in documents:
        raise UsageError("a document and the questions can't both come from stdin")
    if settings.questions.root is not None and not settings.questions.root.is_dir():
        raise UsageError(f"--root {settings.questions.root}: no folder; questions could name no document at all")
    given, notes = find_given(documents, settings.questions)
    if isinstance(questions, str):
        inputs = _from_name(questions, columns, given, settings)
    else:
        inputs = _from_texts(questions, given, settings.questions, together=together)
    if inputs.is_batch and settings.pages.across is Across.EACH:
        raise UsageError(
            f"--across each: a request of a batch file has one answer, and all its pages are read together; leave it "
            f"out, or write {questions} as questions"
        )
    return replace(inputs, notes=inputs.notes + notes)


def read_examples(path: Path, settings: QuestionSettings) -> Examples:
    """Read questions with their documents and answers from CSV or JSONL, such as an output of `run`.

    Raises:
        InputError: they can't be read, or one lacks its document or its answer; names the line.

    """
    from idefics_cli.examples import Example, Examples  # with what opens documents: not needed without examples

    each: list[Example] = []
    pairing = _pairing([], path.parent, settings)
    try:
        with path.open("rb") as stream:
            for job in pair(read_stream(stream, str(path), ColumnNames()), pairing):
                location = job.question.location
                if job.question.failure:
                    raise InputError(f"{location}: example: {job.question.failure}")
                if each and each[-1].job.question.location == location:
                    raise InputError(
                        f"{location}: example: {job.question.document} names several documents; give each a line, or "
                        "in JSONL read them together with documents"
                    )
                each.append(Example(job, _example_answer(job.question)))
    except OSError as error:
        raise InputError(f"--examples {path}: {error.strerror or error}") from error
    if not each:
        raise InputError(f"--examples {path}: no examples in it")
    return Examples(path, tuple(each))


def _example_answer(question: Question) -> str:
    """Return the answer of an example: that of the column `answer`, else the first that is accepted."""
    own = {name.strip().casefold(): value for name, value in question.extra.items()}
    answer = own.get("answer")
    text = answer if isinstance(answer, str) else str(answer) if isinstance(answer, int | float) else ""
    text = text.strip() or next(iter(question.answers), "")
    if not text:
        raise InputError(f"{question.location}: example: no answer; give one in a column 'answer'")
    return text


def _from_name(questions: str, columns: ColumnNames, given: list[Document], settings: RunSettings) -> Inputs:
    path = Path(questions)
    try:
        if questions == STDIN:
            # A file object of its own: at exit Python flushes sys.stdin, which a thread that still reads from it holds.
            return _from_stream(open_descriptor(os.dup(0)), STDIN_NAME, columns, given, settings)
        if path.exists() and not path.is_file() and not path.is_dir():  # a FIFO, /dev/stdin, the shell's <(...)
            return _from_stream(open_descriptor(os.open(path, os.O_RDONLY)), questions, columns, given, settings)
    except OSError as error:
        raise InputError(f"{questions}: {error.strerror or error}") from error
    return _from_file(path, columns, given, settings)


def _pairing(given: list[Document], base: Path, settings: QuestionSettings) -> Pairing:
    return Pairing(
        given,
        base,
        discover.expand,
        discover.from_data_uri,
        discover.is_below,
        allow_urls=settings.allow_urls,
        root=settings.root,
        allow_empty=settings.allow_empty,
    )


def _from_file(path: Path, columns: ColumnNames, given: list[Document], settings: RunSettings) -> Inputs:
    from idefics_cli.questions.file import QuestionFile  # with numpy: not needed for questions of the command line

    file = QuestionFile(
        path,
        columns,
        _pairing(given, path.parent, settings.questions),
        allow_empty=settings.questions.allow_empty,
        read_request=_request_reader(settings),
    )
    if file.is_batch:
        _refuse_documents(given, str(path))
    notes = columns.notes(file.names) + _product(file.without_document, len(given))
    paths = [path, *(Path(document.path) for document in file.documents if document.path)]
    return Inputs(file.jobs(), tuple(file.columns), file.total, notes, paths, file.is_batch)


def _request_reader(settings: RunSettings) -> ReadRequest:
    def read(record: Record, location: str) -> Question:
        from idefics_cli.openai_api.batch_file import read_line  # not needed for other questions

        return read_line(record, location, allow_urls=settings.questions.allow_urls, settings=settings.model)

    return read


def _refuse_documents(given: Sequence[Document], name: str) -> None:
    if given:
        raise UsageError(
            f"{name}: a batch file, whose requests bring their own documents: name none beside it, such as "
            f"{given[0].name}"
        )


def _from_stream(
    stream: IO[bytes], name: str, columns: ColumnNames, given: list[Document], settings: RunSettings
) -> Inputs:
    waiting = stream.peek(1)  # type: ignore[attr-defined]  # blocks until the first bytes are there
    whole_lines = waiting[: waiting.rfind(b"\n") + 1]
    questions = read_stream(stream, name, columns, _request_reader(settings))
    first = next(questions, None)
    if first is None and not settings.questions.allow_empty:
        raise InputError(f"{name}: no questions in it")
    seen = [] if first is None else [first]
    if whole_lines.strip():
        there = read_stream(io.BytesIO(whole_lines), name, columns, _request_reader(settings))
        seen += itertools.islice(there, _WAITING_LINES)
    if is_batch := first is not None and first.chat is not None:
        _refuse_documents(given, name)
    own = tuple(dict.fromkeys(column for question in seen for column in question.extra))
    ours_there = [name for name in ("document", "page", "id") if any(getattr(question, name) for question in seen)]
    notes = [] if is_batch else columns.notes([*own, "question", *ours_there])
    if len(given) > 1 and any(not (question.document or question.documents) for question in seen):
        notes.append(f"each question without a document is asked of {len(given)} documents")
    jobs = pair(itertools.chain(seen[:1], questions), _pairing(given, Path.cwd(), settings.questions))
    return Inputs(jobs, own, None, notes, _paths(given), is_batch)


def _from_texts(texts: Sequence[str], given: list[Document], settings: QuestionSettings, *, together: bool) -> Inputs:
    questions = [Question(text.strip(), f"question {number}") for number, text in enumerate(texts, 1)]
    for question in questions:
        if not question.text:
            raise InputError(f"{question.location} is empty")
        if not question.text.isascii() and question.text.encode(errors="replace").decode() != question.text:
            raise InputError(f"{question.location}: not UTF-8")
    if not settings.allow_empty and not (questions and given):
        raise InputError("no question was given" if not questions else "no document was given")
    if together and given:
        if len(given) > MOST_TOGETHER:
            raise InputError(f"--together: {len(given):,} documents; at most {MOST_TOGETHER} are read together")
        parts = tuple(DocumentPart(document.name) for document in given)
        jobs = [Job(replace(question, documents=parts), given[0], tuple(given)) for question in questions]
        return Inputs(jobs, (), len(jobs), [], _paths(given))
    total = len(questions) * len(given)
    return Inputs(_product_jobs(questions, given), (), total, _product(len(questions), len(given)), _paths(given))


def _product_jobs(questions: Sequence[Question], documents: Sequence[Document]) -> Iterator[Job]:
    return (Job(question, document) for document in documents for question in questions)


def _product(questions: int, documents: int) -> list[str]:
    if not questions or documents < 2:
        return []
    of = "1 question" if questions == 1 else f"each of {questions:,} questions"
    return [f"{of} x {documents:,} documents = {questions * documents:,} rows"]


def _paths(documents: Iterable[Document]) -> list[Path]:
    return [Path(document.path) for document in documents if document.path]
