"""Questions with their pages as files for other programs: OpenAI batch files."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
    *,
    on_line: Callable[[ExportResult], None] = lambda _: None,
) -> ExportResult:
    """Write questions with their pages as OpenAI batch files.

    A line's `custom_id` is the `key` of the row that a run would write.

    Args:
        documents: files, folders and globs.
        questions: the name of a file, `-` for stdin, or the questions themselves.
        path: of the file; several, where the form's limits call for them, are numbered.
        settings: how questions and pages are chosen. Pages are not split.
        how: what stands in the bodies.
        on_line: told of each question that was written or left out.

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
    result = ExportResult(notes=inputs.notes)
    paths = inputs.paths + (examples.paths if examples else [])
    with PagePool(pages) as pool, split_files(path, how.most_lines, how.most_bytes, paths) as files:
        cache = PageCache(pool, WholePage(how.longest_edge))
        writer = _Writer(how, cache, examples.prepared(cache) if examples else None, files, result)
        for row in _requested_rows(inputs, replace(settings, pages=pages), cache, pool.workers):
            writer.take(row)
            on_line(result)
    result.paths = files.paths
    return result


@dataclass(slots=True)
class _RequestedRow:
    """A row whose pages are being rendered."""

    row: PendingRow
    places: list[tuple[Document, int]] = field(default_factory=list)
    page_ids: list[str] = field(default_factory=list)
    failure: Failure | None = None


def _requested_rows(inputs: Inputs, settings: RunSettings, cache: PageCache, workers: int) -> Iterator[_RequestedRow]:
    """Yield the rows that questions ask for; documents are opened ahead, and pages rendered ahead."""

    def opened() -> Iterator[Job]:
        for job in inputs.jobs:
            for document in job.documents or filter(None, [job.document]):
                cache.expect(document)
            yield job

    def requested() -> Iterator[_RequestedRow]:
        jobs = prefetch(opened(), 2 * workers)
        rows = (row for job in jobs for row in rows_of(job, cache, settings.pages, settings.questions.shard))
        for row in itertools.islice(rows, settings.questions.limit):
            one = _RequestedRow(row, failure=row.failure)
            try:
                for place in map(row.place, row.pages if row.failure is None else ()):
                    one.page_ids.append(cache.request(*place))
                    one.places.append(place)
            except RowFailedError as error:
                one.failure = error.failure
            yield one

    return prefetch(requested(), 2 * workers)


class _Writer:
    """Makes lines of rows."""

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
        self._uris: dict[str, str] = {}  # of the pages of the last row: the next is often about the same
        self._keys = Counter[bytes]()

    def take(self, one: _RequestedRow) -> None:
        """Write the line of a row, or say why there is none."""
        try:
            self._write(one)
        except RowFailedError as error:
            self._result.left_out += 1
            if len(self._result.left_out_names) < SHOWN:
                job = one.row.job
                name = job.document.name if job.document else job.question.document or job.question.location
                self._result.left_out_names.append(f"{name}: {job.question.text}: {error.failure}")

    def _write(self, one: _RequestedRow) -> None:
        pages = self._prepared(one)
        question = one.row.job.question
        request = request_of(question, one.row.page_counts, tuple(pages), tuple(one.page_ids), self._examples)
        known, self._uris = self._uris, {}
        for page_id, page in zip(request.page_ids, request.pages, strict=True):
            self._uris[page_id] = known.get(page_id) or data_uri(page.crops[0])
        images = [self._uris[page_id] for page_id in request.page_ids]
        body = chat_body(request.conversation, images, self._generation, self._how.model)
        line = {"custom_id": self._custom_id(one.row.key), "method": "POST", "url": URL, "body": body}
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if not self._files.fits(data):
            words = (
                f"a line of {len(data) / 1e6:,.0f} MB, and a batch file has {self._how.most_bytes / 1e6:,.0f} at most"
            )
            raise RowFailedError(FailureKind.TOO_LARGE, words)
        self._files.write(data)
        self._keys[bytes.fromhex(one.row.key)] += 1
        self._result.lines += 1

    def _custom_id(self, key: str) -> str:
        """Return the key of a row; rows with equal keys, such as those of two copies of a document, are counted."""
        earlier = self._keys[bytes.fromhex(key)]
        return f"{key}-{earlier + 1}" if earlier else key

    def _prepared(self, one: _RequestedRow) -> list[PreparedPage]:
        """Wait for the pages of a row.

        Raises:
            RowFailedError: one can't be rendered, or the row can't be asked.

        """
        try:
            if one.failure is not None:
                raise RowFailedError(one.failure.kind, one.failure.detail)
            return [self._cache.prepared(*place) for place in one.places]
        finally:
            for place in one.places:
                self._cache.release(*place)
