"""Examples: questions with their answers and pages, which stand in front of every question of a run (few-shot)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import Across, PageSettings
from idefics_cli.conversation import PreparedExamples, conversation_of
from idefics_cli.documents.page_cache import PageCache
from idefics_cli.errors import InputError, RowFailedError
from idefics_cli.jobs import asked_words, rows_of
from idefics_cli.records import Document, Job, PreparedPage, Turn
from idefics_cli.rows import PendingRow

_SETTINGS = PageSettings(across=Across.TOGETHER)  # all pages of an example that names none


@dataclass(frozen=True, slots=True)
class Example:
    """A question about documents, and its answer."""

    job: Job
    answer: str

    @property
    def documents(self) -> Sequence[Document]:
        """What it is about, in the order of the prompt."""
        return self.job.documents or [document for document in [self.job.document] if document is not None]


@dataclass(frozen=True, slots=True)
class Examples:
    """Those of a file, in its order."""

    path: Path
    each: tuple[Example, ...]

    @property
    def paths(self) -> list[Path]:
        """The files that are read."""
        return [self.path, *(Path(d.path) for example in self.each for d in example.documents if d.path)]

    def digest(self) -> str:
        """Return a digest of the questions, the answers and the bytes of the documents; of an address, its name.

        Raises:
            InputError: a document can't be read.

        """
        parts = []
        for example in self.each:
            question = example.job.question
            pages = [question.page, *(part.page for part in question.documents)]
            parts.append([asked_words(question), example.answer, pages, [*map(self._digest_of, example.documents)]])
        return hashlib.sha256(json.dumps(parts).encode(errors="surrogatepass")).hexdigest()[:32]

    def _digest_of(self, document: Document) -> str:
        if document.path is None:
            return hashlib.sha256(document.data or (document.url or "").encode()).hexdigest()
        try:
            with Path(document.path).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: {document.path}: {getattr(error, 'strerror', None) or error}") from error

    def prepared(self, cache: PageCache) -> PreparedExamples:
        """Prepare the pages; waits for the page processes.

        Raises:
            InputError: a document or page can't be read.

        """
        turns: list[Turn] = []
        pages: list[PreparedPage] = []
        page_ids: list[str] = []
        for example in self.each:
            (row,) = rows_of(example.job, cache, _SETTINGS)
            try:
                if row.failure is not None:
                    raise RowFailedError(row.failure.kind, row.failure.detail)
                page_ids += [cache.request(*row.place(page)) for page in row.pages]
                pages += [_taken(cache, row, page) for page in row.pages]
            except RowFailedError as error:
                raise InputError(f"{example.job.question.location}: example: {error}") from error
            turns += conversation_of(example.job.question, row.page_counts)
            turns.append(Turn("assistant", (example.answer,)))
        return PreparedExamples(tuple(turns), tuple(pages), tuple(page_ids))


def _taken(cache: PageCache, row: PendingRow, page: int) -> PreparedPage:
    try:
        return cache.prepared(*row.place(page))
    finally:
        cache.release(*row.place(page))
