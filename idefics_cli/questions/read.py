"""From records to questions: each is checked by itself, and what can't be asked becomes a question with a failure."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import IO

from idefics_cli.errors import Failure, FailureKind, InputError, RowFailedError
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.formats import Records, is_request, open_records
from idefics_cli.questions.lines import Record
from idefics_cli.questions.messages import documents_of, question_of, read_documents, read_messages, shown_first
from idefics_cli.questions.pages import selection_of
from idefics_cli.records import DocumentPart, Question, Turn

_REMEMBERED_IDS = 100_000


ReadRequest = Callable[[Record, str], Question]
"""Reads a line of a batch file, given where it stands; one that can't be asked is a question with a failure."""


def read_stream(
    stream: IO[bytes], name: str, columns: ColumnNames, read_request: ReadRequest | None = None
) -> Iterator[Question]:
    """Read questions as their lines come. A line that can't be asked is a question with a failure.

    Args:
        stream: of bytes.
        name: of the file, for messages.
        columns: of questions.
        read_request: reads lines of batch files; None takes them for lines of questions.

    Raises:
        InputError: neither JSONL nor CSV with a column `question`, or it can't be read on.

    """
    ids = RecentIds()
    try:
        records = open_records(stream, name, columns)
        read = record_reader(records, columns, read_request)
        id_name = "custom_id" if records.is_batch and read_request else "id"
        for record in records:
            question = read(record, name)
            earlier = None if question.failure else ids.add(question.id, record.line)
            if earlier is not None:
                question = failed(question, f"duplicate {id_name} {question.id!r}, first in {name}:{earlier}")
            yield question
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from error


def record_reader(
    records: Records, columns: ColumnNames, read_request: ReadRequest | None
) -> Callable[[Record, str], Question]:
    """Return what checks the values of one of these records, given the name of the file."""
    take = read_request if records.is_batch and read_request else functools.partial(_checked, columns=columns)

    def read(record: Record, name: str) -> Question:
        location = f"{name}:{record.line}"
        try:
            return take(record, location)
        except Exception as error:  # whatever a line holds, the others go on
            return failed(Question("", location), str(error) or type(error).__name__)

    return read


def _checked(record: Record, location: str, columns: ColumnNames) -> Question:
    ours, own = columns.split(record.values)
    if "answers" in ours and "answers" in own:
        raise ValueError("two columns would be written as 'answers'")
    if "answers" in ours:
        own["answers"] = ours["answers"]  # under this name, whatever the user's is: `eval` looks for it
    problem = record.problem or _problem(ours)
    if not record.problem and not ours.keys() & {"question", "messages"}:
        problem = _no_question(record.values, columns)
    failure = Failure(FailureKind.BAD_QUESTION, problem) if problem else None
    page: str | None = None
    documents: tuple[DocumentPart, ...] = ()
    turns: tuple[Turn, ...] = ()
    try:
        page = selection_of(ours.get("page"))
        if failure is None:
            documents, turns = _lists(ours)
    except RowFailedError as error:
        failure = failure or error.failure
    except ValueError as error:
        failure = Failure(FailureKind.BAD_QUESTION, str(error))
    identity = ours.get("id")
    return Question(
        question_of(turns) if turns else _text(ours.get("question")),
        location,
        document=_text(ours.get("document")) or None,
        page=page,
        id=identity if _is_number(identity) else _text(identity),
        answers=accepted_answers(ours.get("answers")),
        extra=own,
        password=_text(ours.get("password")) or None,
        failure=failure,
        documents=documents,
        turns=turns,
    )


def _no_question(values: Mapping[str, object], columns: ColumnNames) -> str:
    there = ", ".join(values)[:200] or "nothing"
    if is_request(values):
        way_out = "leave --column out" if columns.given else "the first line of the file must be one too"
        hint = f"it is a request of an OpenAI batch file: {way_out}"
    else:
        hint = columns.hint(values)
    return f"no 'question' in this line (found: {there}); {hint}"


def _lists(ours: dict[str, object]) -> tuple[tuple[DocumentPart, ...], tuple[Turn, ...]]:
    """Return the documents that are read together and the conversation of a line, empty where it has none.

    Raises:
        ValueError: they can't be read, or contradict other columns.
        RowFailedError: a page selection does not read as pages (kind no-such-page).

    """
    turns = () if ours.get("messages") is None else read_messages(ours["messages"])
    documents = () if ours.get("documents") is None else read_documents(ours["documents"])
    shown = documents_of(turns)
    if turns and ours.get("question") is not None:
        raise ValueError("question and messages: give one of the two; the last turn of messages is the question")
    if (shown or documents) and ours.get("document"):
        raise ValueError(f"document and {'messages' if shown else 'documents'} name documents: give them in one place")
    if shown and documents:
        raise ValueError("documents and messages name documents: give them in one place")
    if turns and documents:
        turns = shown_first(turns, documents)
    return documents or shown, turns


def _problem(ours: dict[str, object]) -> str:
    """Say why a line can't be asked; empty when it can."""
    text = ours.get("question")
    is_question = isinstance(text, str) and text.strip()
    if not is_question and not (text is None and ours.get("messages") is not None):
        return "question: a text is wanted" if text else "the question is empty"
    if not isinstance(ours.get("document"), str | None):
        return "document: a path is wanted"
    if not isinstance(ours.get("id"), str | None) and not _is_number(ours["id"]):
        return "id: a text or a number is wanted"
    password = ours.get("password")
    if not isinstance(password, str | None) and not _is_number(password):
        return "password: a text is wanted"
    return ""


def failed(question: Question, detail: str, kind: FailureKind = FailureKind.BAD_QUESTION) -> Question:
    """Return the question with the reason why it can't be asked."""
    return dataclasses.replace(question, failure=Failure(kind, detail))


def accepted_answers(value: object) -> tuple[str, ...]:
    """Return the accepted answers of a cell: a JSON list, or texts with `|` between them."""
    if value is None:
        return ()
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.startswith("["):
            try:
                return accepted_answers(json.loads(stripped))
            except (ValueError, RecursionError):
                pass
        return tuple(part.strip() for part in stripped.split("|") if part.strip())
    if isinstance(value, list):
        return tuple(str(part).strip() for part in value if str(part).strip())
    return (str(value),)


def id_text(identity: object) -> str:
    """Return an id as it is compared with others: 7, 7.0 and "7" are one."""
    return str(int(identity) if isinstance(identity, float) and identity.is_integer() else identity)


class RecentIds:
    """The ids of a pipe: at least the last 100,000, as 64-bit hashes with their lines; 25 MB at most."""

    def __init__(self) -> None:
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def add(self, identity: object, line: int) -> int | None:
        """Remember an id; return the line that had it before, if one did."""
        if not (text := id_text(identity)):
            return None
        digest = hash(text)
        earlier = self._new.get(digest) or self._old.get(digest)
        if earlier is None:
            if len(self._new) >= _REMEMBERED_IDS:
                self._old, self._new = self._new, {}
            self._new[digest] = line
        return earlier


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else str(value) if _is_number(value) else ""
