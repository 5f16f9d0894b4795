"""The story of a run: jobs -> documents opened ahead -> pages rendered ahead -> engine.submit -> rows.

Every arrow is a bounded stream, so that memory does not grow with the number of documents, pages or questions. Every
question that comes in leaves as a row (one for each page with `--across each`), answered or failed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace

from idefics_cli.config import Format, RunSettings
from idefics_cli.conversation import PreparedExamples, request_of
from idefics_cli.documents.page_cache import PageCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.base import Engine
from idefics_cli.errors import Failure, RowFailedError
from idefics_cli.examples import Examples
from idefics_cli.jobs import rows_of
from idefics_cli.prefetch import prefetch
from idefics_cli.progress import Progress as Progress
from idefics_cli.records import ChatOptions, Generation, Job, PreparedPage, Request, Row
from idefics_cli.results.fingerprint import settings_fingerprint, settings_values
from idefics_cli.rows import PageFacts, PageRequest, PendingRow, finished_row

_PAGES_AHEAD = 4  # requests for each page process whose pages are being rendered


def run(
    jobs: Iterable[Job],
    engine: Engine,
    pool: PagePool,
    settings: RunSettings,
    *,
    examples: Examples | None = None,
    fingerprint: str | None = None,
    take_answered: Callable[[str], bool] = lambda _: False,
    progress: Progress | None = None,
    on_job: Callable[[Job], None] = lambda _: None,
    on_row: Callable[[Job, Row], None] = lambda *_: None,
) -> Generator[Row, None, None]:
    """Answer jobs and yield their rows, in the order of the jobs.

    When the run is ended from outside, or the engine can't go on, rows that are answered still come, though rows before
    them do not.

    Args:
        jobs: questions with their documents; read in a thread, little further ahead than the engine needs.
        engine: answers the questions.
        pool: prepares the pages.
        settings: of the run.
        examples: stand in front of every question.
        fingerprint: for the `settings` column; None makes it of the settings and the engine's.
        take_answered: whether a row with this key is there already, and not yet taken for another; it is skipped then.
        progress: kept up to date.
        on_job: told of each job once all of its rows were looked up with `take_answered`, from a thread.
        on_row: told of each row and its job before the row is yielded.

    Raises:
        InputError: the examples can't be read.
        ModelError: the engine can't go on.

    """
    progress = progress if progress is not None else Progress()
    cache = PageCache(pool, engine.info.image_processor)
    stages = _Stages(engine, cache, settings, take_answered, progress, examples, on_job)
    if fingerprint is None:
        digest = examples.digest() if examples else ""
        fingerprint = settings_fingerprint(settings_values(engine.info.settings, settings, examples=digest))
    in_flight: deque[PendingRow] = deque()
    with_response = settings.output.format is Format.OPENAI_BATCH

    def finish(row: PendingRow) -> Row:
        finished = finished_row(row, engine.info.name, fingerprint, with_response=with_response)
        progress.rows += 1
        progress.failed += finished.status == "failed"
        on_row(row.job, finished)
        return finished

    try:
        for row in stages.submitted(jobs, pool.workers, in_flight):
            finished = finish(row)
            in_flight.popleft()
            yield finished
    except GeneratorExit:
        raise
    except BaseException:
        stages.stop()
        for row in list(in_flight):  # the thread of `submit` may be adding its last
            if row.is_answered:
                yield finish(row)
        raise
    finally:
        stages.stop()


class _Stages:
    """The stages of a run; each turns one stream into the next."""

    def __init__(
        self,
        engine: Engine,
        cache: PageCache,
        settings: RunSettings,
        take_answered: Callable[[str], bool],
        progress: Progress,
        examples: Examples | None,
        on_job: Callable[[Job], None],
    ) -> None:
        self._engine, self._cache, self._settings = engine, cache, settings
        self._take_answered, self._progress, self._on_job = take_answered, progress, on_job
        self._examples = examples
        self._prepared_examples: PreparedExamples | None = None
        self._room = threading.Semaphore(engine.info.capacity)
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Let the threads of stages end."""
        self._is_stopped.set()
        self._room.release()

    def submitted(self, jobs: Iterable[Job], workers: int, in_flight: deque[PendingRow]) -> Iterator[PendingRow]:
        """Join the stages, from jobs to submitted rows; no name keeps a stream alive after its reader."""
        return prefetch(
            self.submit(
                prefetch(
                    self.request_pages(self.pending_rows(prefetch(self._cache.expect_all(jobs), 2 * workers))),
                    _PAGES_AHEAD * workers,
                ),
                in_flight,
            ),
            self._engine.info.capacity,
        )

    def pending_rows(self, jobs: Iterable[Job]) -> Iterator[PendingRow]:
        """Turn each job into the rows it asks for, without those that are answered."""
        limit = self._settings.questions.limit
        count = 0
        for job in jobs:
            for row in rows_of(job, self._cache, self._settings.pages, self._settings.questions.shard):
                if self._take_answered(row.key):
                    self._progress.skipped += 1
                    continue
                if count == limit:
                    return
                count += 1
                yield row
            self._on_job(job)

    def request_pages(self, rows: Iterable[PendingRow]) -> Iterator[PageRequest]:
        """Ask the page processes for the pages of each row, one request of the engine at a time."""
        for row in rows:
            pages = row.pages if row.failure is None else ()
            groups = [pages] if row.is_together or not pages else [(page,) for page in pages]
            if pages:
                self._engine.start()  # the weights are loaded while the first pages are rendered
            for index, group in enumerate(groups, 1):
                page_ids: dict[int, str] = {}
                for page in group:
                    try:
                        page_ids[page] = self._cache.request(*row.place(page))
                    except RowFailedError as error:
                        row.page_failures.append(error.failure)
                yield PageRequest(row, page_ids, index == len(groups))

    def submit(self, requests: Iterable[PageRequest], in_flight: deque[PendingRow]) -> Iterator[PendingRow]:
        """Hand each request to the engine once its pages are there; yields rows whose requests are all submitted."""
        for request in requests:
            row = request.row
            if not in_flight or in_flight[-1] is not row:
                in_flight.append(row)
            pages = self._prepared(request)
            if (pages or row.job.is_text) and not (row.is_together and row.page_failures):
                self._room.acquire()
                if self._is_stopped.is_set():
                    return
                page_ids = tuple(request.page_ids[page] for page in pages)
                if self._examples is not None:
                    self._prepare_examples(self._examples, row)
                counts, prepared = row.page_counts, tuple(pages.values())
                asked = request_of(row.job.question, counts, prepared, page_ids, self._prepared_examples)
                answer = self._engine.submit(self._with_generation(asked, row.job.question.chat))
                if row.submitted_at is None:  # by now the weights are loaded
                    row.submitted_at = time.perf_counter()
                answer.add_done_callback(lambda _: self._room.release())
                row.expect(next(iter(pages), 0), answer)
            if request.is_last:
                row.is_submitted = True
                yield row

    def _with_generation(self, request: Request, chat: ChatOptions | None) -> Request:
        """Let a request have the settings that a line of a batch file wants, up to the longest answer there is."""
        if chat is None or chat.generation == Generation():
            return request
        generation = chat.generation
        if generation.max_new_tokens is not None:
            own = int(self._engine.info.settings.get("--max-new-tokens", 1))
            longest = max(own, self._settings.model.most_new_tokens)
            generation = replace(generation, max_new_tokens=min(generation.max_new_tokens, longest))
        return replace(request, generation=generation)

    def _prepare_examples(self, examples: Examples, row: PendingRow) -> None:
        """Prepare the pages of the examples, once; the row that first needs them bears their cost.

        Raises:
            InputError: one can't be read.

        """
        if self._prepared_examples is None:
            self._prepared_examples = examples.prepared(self._cache)
            row.raster_ms += sum(page.raster_ms for page in self._prepared_examples.pages)
            row.prepare_ms += sum(page.prepare_ms for page in self._prepared_examples.pages)

    def _prepared(self, request: PageRequest) -> dict[int, PreparedPage]:
        """Wait for the pages of a request; the row that first uses a page bears its cost."""
        row, ready = request.row, {}
        for page in request.page_ids:
            document, number = row.place(page)
            try:
                prepared = ready[page] = self._cache.prepared(document, number)
            except RowFailedError as error:
                detail = f"page {number}: {error.failure.detail}" if len(row.pages) > 1 else error.failure.detail
                detail = f"{document.name}: {detail}" if len(row.job.documents) > 1 else detail
                row.page_failures.append(Failure(error.failure.kind, detail))
            else:
                row.facts[page] = PageFacts.of(prepared)
                if self._cache.is_first_use(document, number):
                    self._progress.pages += 1
                    self._progress.split_pages += prepared.split
                    row.raster_ms += prepared.raster_ms
                    row.prepare_ms += prepared.prepare_ms
            self._cache.release(document, number)
        return ready
