"""A questions file of any length: checked whole, then read again question by question, grouped by document.

What is held of a line is where it begins, its number, a hash of its id and which documents it is asked of: 28 bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from idefics_cli.errors import Failure, FailureKind, InputError, RowFailedError
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.formats import open_records
from idefics_cli.questions.groups import rows_of_groups
from idefics_cli.questions.jsonl import JsonLines
from idefics_cli.questions.lines import LONGEST_LINE, Record, decoded
from idefics_cli.questions.messages import check_count
from idefics_cli.questions.pair import Pairing, pair
from idefics_cli.questions.read import ReadRequest, id_text, record_reader
from idefics_cli.records import Document, Job, Question

_HELD_WHOLE = 64 * 1024 * 1024
_SHOWN_PROBLEMS = 10
_JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
_LONGEST_KEY = 200
_NO_DOCUMENT = b"no document"


class QuestionFile:
    """The questions of a file, each of which can be asked, or fails as a row."""

    def __init__(
        self,
        path: Path,
        columns: ColumnNames,
        pairing: Pairing,
        *,
        allow_empty: bool = False,
        read_request: ReadRequest | None = None,
    ) -> None:
        """Read and check the file.

        Args:
            path: of the file.
            columns: of questions.
            pairing: finds documents.
            allow_empty: whether there may be no question.
            read_request: reads lines of batch files, of which those that can't be asked fail by themselves.

        Raises:
            InputError: it can't be read, a line of it can't be asked, or an id stands twice.

        """
        self.columns: dict[str, None] = {}
        """The user's own columns."""
        self.without_document = 0
        """Questions that are asked of every document of the command line."""
        self._name = str(path)
        self._column_names, self._read_request = columns, read_request
        self._pairing = pairing
        self._starts, self._lines, self._ids = array("Q"), array("Q"), array("q")
        self._targets = array("I")
        self._target_of: dict[object, int] = {}
        self._groups: dict[Document | bytes | None, int] = {}
        """Documents in the order of first mention; bytes or None: the line itself says which, or why there is none."""
        self._pairs = array("I"), array("I")
        """A group and a target that it belongs to."""
        self._target_sizes = array("I")
        self._problems: list[str] = []
        self._problem_count = 0
        try:
            self._read(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        self._refuse(allow_empty)

    def _read(self, path: Path) -> None:
        self._source: IO[bytes] = path.open("rb")
        self._status = _status(self._source)
        self._is_held = self._status[0] <= _HELD_WHOLE
        if self._is_held:
            with self._source as file:
                self._source = io.BytesIO(file.read())
        self._is_jsonl = path.suffix.lower() in _JSONL_SUFFIXES
        self._records = open_records(self._source, self._name, self._column_names, is_jsonl=self._is_jsonl)
        self.is_batch = self._records.is_batch and self._read_request is not None
        """Whether its lines are requests in the form of OpenAI batch files."""
        self._to_question = record_reader(self._records, self._column_names, self._read_request)
        names: dict[str, None] = {}
        for record in self._records:
            if not self.is_batch and not record.values.keys() <= names.keys():
                names.update(dict.fromkeys(record.values))
            self._add(record)
        self._starts.append(self._source.tell())
        self._target_of.clear()
        self.names = tuple(names)
        """Every column of the file; none of a batch file."""

    def _add(self, record: Record) -> None:
        question = self._to_question(record, self._name)
        target, failure = self._target(question)
        if failure and self.is_batch:
            target = self._numbered_target(None, [None])
        elif failure and failure.kind is FailureKind.BAD_QUESTION:
            self._problem(f"{question.location}: {failure}")
            return
        if not question.extra.keys() <= self.columns.keys():
            self.columns.update(dict.fromkeys(question.extra))
        if question.document is None and not question.documents and failure is None and question.chat is None:
            self.without_document += 1
        self._starts.append(record.start)
        self._lines.append(record.line)
        self._ids.append(hash(id_text(question.id)) if question.id != "" else 0)
        self._targets.append(target)

    def _target(self, question: Question) -> tuple[int, Failure | None]:
        """Return the number of the set of documents that a question is asked of, or why there is none."""
        if question.failure:
            return self._numbered_target(None, [None]), question.failure
        if question.documents:
            return self._target_of_several(question)
        if question.chat is not None:
            return self._numbered_target(_NO_DOCUMENT, [_NO_DOCUMENT]), None
        name = question.document or ""
        digest = hashlib.sha256(name.encode()).digest() if len(name) > _LONGEST_KEY else name.encode()
        key = (digest, question.password) if question.password or len(name) > _LONGEST_KEY else name
        if key in self._target_of:
            return self._target_of[key], None
        if name[:5].lower() == "data:":
            return self._numbered_target(key, [digest]), None  # decoded when its turn comes
        try:
            documents = self._pairing.documents_of(question)
        except RowFailedError as error:
            return 0, error.failure
        except Exception as error:
            return 0, Failure(FailureKind.BAD_QUESTION, f"document: {error or type(error).__name__}")
        return self._numbered_target(key, documents), None

    def _target_of_several(self, question: Question) -> tuple[int, Failure | None]:
        """Return the target of a line whose documents are read together; the line itself says which."""
        names = [part.document for part in question.documents]
        key = hashlib.sha256(repr((names, question.password)).encode(errors="surrogateescape")).digest()
        if key not in self._target_of:
            count = 0
            for name in names:
                target, failure = self._target(Question("", "", document=name, password=question.password))
                if failure:
                    return 0, failure
                count += self._target_sizes[target]
            try:
                check_count(count, "documents")
            except ValueError as error:
                return 0, Failure(FailureKind.BAD_QUESTION, str(error))
        return self._numbered_target(key, [key]), None

    def _numbered_target(self, key: object, groups: Sequence[Document | bytes | None]) -> int:
        if key in self._target_of:
            return self._target_of[key]
        number = self._target_of[key] = len(self._target_of)
        self._target_sizes.append(len(groups))
        for group in groups:
            self._pairs[0].append(self._groups.setdefault(group, len(self._groups)))
            self._pairs[1].append(number)
        return number

    def _problem(self, words: str) -> None:
        self._problem_count += 1
        if len(self._problems) < _SHOWN_PROBLEMS:
            self._problems.append(words)

    def _refuse(self, allow_empty: bool) -> None:
        if not self._problem_count:
            self._find_equal_ids()
        if self._problem_count:
            more = self._problem_count - len(self._problems)
            raise InputError("\n".join(self._problems) + (f"\n... and {more} more" if more else ""))
        if not len(self) and not allow_empty:
            raise InputError(f"{self._name}: no questions in it; --allow-empty lets a run have none")
        if not len(self) and not self._is_jsonl and isinstance(self._records, JsonLines):  # CSV is told by its header
            raise InputError(
                f"{self._name}: empty, without even a header: --allow-empty takes CSV with a header and no lines, or "
                "an empty .jsonl"
            )
        if len(self) and (missing := self._column_names.missing(self.names)):
            raise InputError(f"{self._name}: {missing} (found: {', '.join(self.names)[:500]})")

    def _find_equal_ids(self) -> None:
        ids = np.frombuffer(self._ids, np.int64) if self._ids else np.zeros(0, np.int64)
        ordered = np.sort(ids)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        first: dict[str, str] = {}
        for row in np.flatnonzero(np.isin(ids, repeated[repeated != 0])):
            question = self._question(int(row))
            text = id_text(question.id)
            if text in first:
                name = "custom_id" if self.is_batch else "id"
                self._problem(f"{question.location}: duplicate {name} {question.id!r}, first in {first[text]}")
                if self._problem_count > _SHOWN_PROBLEMS:
                    return
            else:
                first[text] = question.location

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def total(self) -> int:
        """Jobs."""
        sizes = np.array(self._target_sizes, np.int64)
        return int(sizes[np.array(self._targets, np.int64)].sum()) if len(self) else 0

    @property
    def documents(self) -> Iterator[Document]:
        """Those that are asked about, each once, but for data URIs."""
        return (group for group in self._groups if isinstance(group, Document))

    def jobs(self) -> Iterator[Job]:
        """Yield a job for each question and document, those of one document together, in the order of first mention.

        Raises:
            InputError: the file was changed after it was checked.

        """
        for group, rows in zip(
            self._groups,
            rows_of_groups(self._targets, self._pairs, len(self._target_sizes), len(self._groups)),
            strict=True,
        ):
            for row in rows:
                question = self._question(int(row))
                if isinstance(group, Document):
                    yield Job(question, group)
                else:
                    yield from pair([question], self._pairing)

    def _question(self, row: int) -> Question:
        """Read a question again."""
        if not self._is_held and _status(self._source) != self._status:
            raise InputError(f"{self._name}: the file was changed while the run read it; start the run again")
        start, length = self._starts[row], self._starts[row + 1] - self._starts[row]  # with blank lines behind it
        self._source.seek(start)
        text, problem = decoded(self._source.read(min(length, LONGEST_LINE)), length)
        values, problem = ({}, problem) if problem else self._records.parse(text)
        return self._to_question(Record(self._lines[row], start, values, problem), self._name)


def _status(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
