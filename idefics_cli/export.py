"""Questions with their pages as files for other programs: OpenAI batch files."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from idefics_cli.config import Across, GenerationSettings, RunSettings, Split
from idefics_cli.conversation import PreparedExamples, request_of
from idefics_cli.documents.page_cache import PageCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.documents.whole_page import WholePage, data_uri
from idefics_cli.errors import Failure, FailureKind, InputError, RowFailedError, UsageError
from idefics_cli.inputs import Inputs, read_examples, read_inputs
from idefics_cli.jobs import rows_of
from idefics_cli.openai_api.batch_file import MOST_BYTES, MOST_LINES, URL
from idefics_cli.openai_api.write import chat_body
from idefics_cli.prefetch import prefetch
from idefics_cli.records import Document, Generation, Job, PreparedPage
from idefics_cli.results.split_files import SplitFiles, split_files
from idefics_cli.rows import PendingRow

_PAGES_AHEAD = 4  # for each page process
_KEPT_BYTES = 256_000_000  # of pages that the next question may be about too
SHOWN = 20
"""Questions left out that are named."""


@dataclass(frozen=True, slots=True)
class BatchExport:
    """What the bodies of a batch file say beside what is asked."""

    model: str
    """As the server that is to answer calls it."""
    generation: GenerationSettings
    longest_edge: int
    """Of a page, in pixels."""
    most_lines: int = MOST_LINES
    most_bytes: int = MOST_BYTES


@dataclass(slots=True)
class ExportResult:
    """What was written."""

    paths: list[Path] = field(default_factory=list)
    lines: int = 0
    left_out: int = 0
    """Questions that can't be asked, such as those about a document that can't be read."""
    left_out_names: list[str] = field(default_factory=list)
    """The first few, with the reason."""
    notes: list[str] = field(default_factory=list)


def export_batch(
    documents: Sequence[str],
    questions: str | Sequence[str],
    path: Path,
    settings: RunSettings,
    how: BatchExport,
    result: ExportResult | None = None,
) -> ExportResult:
    """Write questions with their pages as OpenAI batch files.

    A line's `custom_id` is the `key` of the row that a run would write.

    Args:
        documents: files, folders and globs.
        questions: the name of a file, `-` for stdin, or the questions themselves.
        path: of the file; several, where the form's limits call for them, are numbered.
        settings: how questions and pages are chosen. Pages are not split.
        how: what stands in the bodies.
        result: kept up to date.

    Raises:
        InputError: the questions can't be read, or nothing can be asked.
        OutputError: a file is there already, or can't be written.
        UsageError: the page of the best answer is asked for, which needs the answers.

    """
    if settings.pages.across is Across.BEST:
        raise UsageError(
            "--across best compares answers, and there are none yet: export with together (a line for each document) "
            "or each (a line for each page)"
        )
    inputs = read_inputs(documents, questions, settings)
    if inputs.is_batch:
        raise InputError(f"{questions}: a batch file already")
    pages = replace(settings.pages, split=Split.NEVER)
    named = settings.questions.examples
    examples = read_examples(named, settings.questions) if named is not None else None
    result = result if result is not None else ExportResult()
    result.notes += inputs.notes
    paths = inputs.paths + (examples.paths if examples else [])
    with PagePool(pages) as pool, split_files(path, how.most_lines, how.most_bytes, paths) as files:
        cache = PageCache(pool, WholePage(how.longest_edge), kept_bytes=_KEPT_BYTES)
        writer = _Writer(how, cache, examples.prepared(cache) if examples else None, files, result)
        for page in _requested_pages(inputs, replace(settings, pages=pages), cache, pool.workers):
            writer.take(page)
    result.paths = files.paths
    return result


@dataclass(frozen=True, slots=True)
class _RequestedPage:
    """A page that is being rendered, of a row; without a place where there is none to render."""

    row: PendingRow
    place: tuple[Document, int] | None = None
    page_id: str = ""
    failure: Failure | None = None
    is_last: bool = False
    """Of its row."""


def _requested_pages(inputs: Inputs, settings: RunSettings, cache: PageCache, workers: int) -> Iterator[_RequestedPage]:
    """Yield the pages of the rows that questions ask for; documents are opened ahead, and pages rendered ahead."""

    def requested() -> Iterator[_RequestedPage]:
        jobs = prefetch(cache.expect_all(inputs.jobs), 2 * workers)
        rows = (row for job in jobs for row in rows_of(job, cache, settings.pages, settings.questions.shard))
        for row in itertools.islice(rows, settings.questions.limit):
            if row.failure is not None:
                yield _RequestedPage(row, failure=row.failure, is_last=True)
                continue
            for page in row.pages:
                place, is_last = row.place(page), page == row.pages[-1]
                try:
                    yield _RequestedPage(row, place, cache.request(*place), is_last=is_last)
                except RowFailedError as error:
                    yield _RequestedPage(row, failure=error.failure, is_last=is_last)

    return prefetch(requested(), _PAGES_AHEAD * workers)


class _Writer:
    """Makes lines of pages."""

    def __init__(
        self,
        how: BatchExport,
        cache: PageCache,
        examples: PreparedExamples | None,
        files: SplitFiles,
        result: ExportResult,
    ) -> None:
        self._how, self._cache, self._examples, self._files, self._result = how, cache, examples, files, result
        asked = how.generation
        self._generation = Generation(
            asked.max_new_tokens, asked.temperature or 0.0, asked.top_p, asked.seed, asked.stop
        )
        self._shown = [data_uri(page.crops[0]) for page in examples.pages] if examples else []
        self._images: list[str] = []
        """Of the row whose pages come."""
        self._failure: Failure | None = None
        """Of that row."""
        self._uris: dict[str, str] = {}
        self._last_uris: dict[str, str] = {}
        """Of that row and of the one before, which is often about the same pages."""
        self._keys = Counter[bytes]()

    def take(self, page: _RequestedPage) -> None:
        """Wait for a page; after the last of a row, write its line, or say why there is none."""
        try:
            if page.failure is not None:
                raise RowFailedError(page.failure.kind, page.failure.detail)
            if self._failure is None:
                self._images.append(self._image(page))
            if page.is_last and self._failure is None:
                self._write(page.row)
        except RowFailedError as error:
            self._failure = self._failure or error.failure
        finally:
            if page.place is not None:
                self._cache.release(*page.place)
        if page.is_last:
            if self._failure is not None:
                self._leave_out(page.row.job, self._failure)
            self._images, self._failure = [], None
            self._last_uris, self._uris = self._uris, {}

    def _leave_out(self, job: Job, failure: Failure) -> None:
        self._result.left_out += 1
        if len(self._result.left_out_names) < SHOWN:
            name = job.document.name if job.document else job.question.document or job.question.location
            self._result.left_out_names.append(f"{name}: {job.question.text}: {failure}")

    def _image(self, page: _RequestedPage) -> str:
        """Return a page as a data URI; raises RowFailedError where it can't be rendered."""
        uri = self._uris.get(page.page_id) or self._last_uris.get(page.page_id)
        assert page.place is not None
        self._uris[page.page_id] = uri = uri or data_uri(self._cache.prepared(*page.place).crops[0])
        self._check_size(sum(map(len, self._images)) + len(uri))  # no more pages are held than a line may have
        return uri

    def _check_size(self, size: int) -> None:
        if size > self._how.most_bytes:
            words = f"its line would have more than the {self._how.most_bytes / 1e6:g} MB of a batch file"
            raise RowFailedError(FailureKind.TOO_LARGE, words)

    def _write(self, row: PendingRow) -> None:
        """Write the line of a row; raises RowFailedError where it is longer than a file may be."""
        stand_ins = tuple(PreparedPage((), "", 0.0, 0.0) for _ in self._images)
        request = request_of(row.job.question, row.page_counts, stand_ins, ("",) * len(stand_ins), self._examples)
        body = chat_body(request.conversation, self._shown + self._images, self._generation, self._how.model)
        line = {"custom_id": self._custom_id(row.key), "method": "POST", "url": URL, "body": body}
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self._check_size(len(data))
        self._files.write(data)
        self._keys[bytes.fromhex(row.key)] += 1
        self._result.lines += 1

    def _custom_id(self, key: str) -> str:
        """Return the key of a row; rows with equal keys, such as those of two copies of a document, are counted."""
        earlier = self._keys[bytes.fromhex(key)]
        return f"{key}-{earlier + 1}" if earlier else key
