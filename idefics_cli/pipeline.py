"""The story of a run: jobs -> pages -> requests -> answers -> rows, every arrow a bounded stream.

Every question that comes in leaves as a row (one a page with `--across each`), answered or failed.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from idefics_cli.ahead import ahead
from idefics_cli.config import Across, RunSettings
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, result_of
from idefics_cli.documents.store import PageStore
from idefics_cli.engine.base import Engine
from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.questions.pages import select_pages
from idefics_cli.records import Document, Job, Request, Row
from idefics_cli.rows import RowToBe, answer_settings, finished_row, row_key

_FIRST_WINDOW = 8  # which part of a window the first one is; they double


@dataclass(slots=True)
class Progress:
    """What a run has done so far."""

    rows: int = 0
    failed: int = 0
    skipped: int = 0
    pages: int = 0
    split_pages: int = 0


def run(
    jobs: Iterable[Job],
    engine: Engine,
    pool: PagePool,
    settings: RunSettings,
    *,
    done: Collection[str] = frozenset(),
    progress: Progress | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> Generator[Row, None, None]:
    """Answer jobs and yield their rows, in the order of the jobs.

    Args:
        jobs: questions with their documents; read in a thread, little further ahead than one window of the engine.
        engine: answers the questions.
        pool: prepares the pages.
        settings: of the run.
        done: keys of rows that are there already; they are passed over.
        progress: kept up to date.
        ready: whether another job is at hand without waiting; when none is, what is there is answered at once.

    Raises:
        ModelError: the engine can't go on.

    """
    progress = progress if progress is not None else Progress()
    store = PageStore(pool, engine.geometry)
    rows = _with_keys(_looked_ahead(jobs, store, pool.workers, ready), store, engine, settings, done, progress)
    windows = _windows(rows, store, engine.window, ready)
    # While a window is answered, the next one is gathered and its pages are prepared.
    for window, requests in ahead((window, _requests(window, store, progress)) for window in windows):
        waiting = deque(window)
        for answer in itertools.chain(engine.answer(requests.values()), [None]):
            if answer is not None:
                row_to_be, page = requests.owner[answer.number]
                row_to_be.answers[page] = answer
            # Rows leave in order, each as soon as it is done; after the last answer, all of them.
            while waiting and (answer is None or waiting[0].is_answered):
                row = finished_row(waiting.popleft(), engine.name)
                progress.rows += 1
                progress.failed += row.status == "failed"
                yield row


def check_pages(jobs: Iterable[Job], pool: PagePool) -> None:
    """Check that the pages that questions name are there; documents that can't be opened fail later, row by row.

    Raises:
        InputError: a question names a page that its document does not have.

    """
    naming = [(job.document, job.question) for job in jobs if job.document and job.question.page]
    infos = {document: pool.inspect(document) for document in dict.fromkeys(document for document, _ in naming)}
    problems = []
    for document, question in naming:
        try:
            select_pages(question.page, result_of(infos[document], DocumentInfo).pages)
        except RowFailedError as failure:
            if failure.kind is FailureKind.NO_SUCH_PAGE:
                problems.append(f"{question.place}: {document.name}: {failure}")
    if problems:
        raise InputError("\n".join(problems))


def _looked_ahead(jobs: Iterable[Job], store: PageStore, ahead: int, ready: Callable[[], bool]) -> Iterator[Job]:
    """Pass jobs on while the documents of those behind them are being opened."""
    waiting: deque[Job] = deque()
    source = iter(jobs)
    exhausted = False
    while True:
        while not exhausted and len(waiting) <= ahead and (not waiting or ready()):
            job = next(source, None)
            if job is None:
                exhausted = True
                break
            if job.document is not None:
                store.expect(job.document)
            waiting.append(job)
        if not waiting:
            return
        yield waiting.popleft()


def _with_keys(
    jobs: Iterable[Job],
    store: PageStore,
    engine: Engine,
    settings: RunSettings,
    done: Collection[str],
    progress: Progress,
) -> Iterator[RowToBe]:
    """Turn each job into the rows it asks for, without those that are done."""
    setting_values = answer_settings(engine, settings)
    left = settings.limit if settings.limit is not None else -1
    for job in jobs:
        for row in _rows_of(job, store, settings):
            row.key = row_key(row, _digest(row.job.document, store), setting_values)
            if row.key in done:
                progress.skipped += 1
                continue
            if left == 0:
                return
            left -= 1
            yield row


def _rows_of(job: Job, store: PageStore, settings: RunSettings) -> Iterator[RowToBe]:
    taken = time.perf_counter()
    if job.document is None or job.question.failure:
        yield RowToBe(job, taken, failure=job.question.failure or f"{FailureKind.BAD_QUESTION}: it has no document")
        return
    try:
        count = store.info(job.document).pages
        pages = select_pages(job.question.page or settings.page_selection, count)
    except RowFailedError as failure:
        yield RowToBe(job, taken, failure=str(failure))
        return
    if settings.across is Across.EACH:
        for page in pages:
            yield RowToBe(job, time.perf_counter(), (page,))
    else:
        yield RowToBe(job, taken, pages, together=settings.across is Across.TOGETHER and len(pages) > 1)


def _digest(document: Document | None, store: PageStore) -> str | None:
    try:
        return store.info(document).digest if document else None
    except RowFailedError:
        return None


def _windows(
    rows: Iterable[RowToBe], store: PageStore, size: int, ready: Callable[[], bool]
) -> Iterator[list[RowToBe]]:
    """Group rows into windows of about `size` requests, and ask for their pages.

    A row is never parted; one with more pages than a window makes a window of its own. The first windows are small,
    so that the engine begins soon.
    """
    first = max(1, size // _FIRST_WINDOW)
    window: list[RowToBe] = []
    gathered: deque[list[RowToBe]] = deque()
    requests = 0
    for row in rows:
        if row.failure is None and row.job.document is not None:
            row.page_ids = tuple(store.request(row.job.document, page) for page in row.pages)
        window.append(row)
        requests += 1 if row.together else max(1, len(row.pages))
        if requests >= min(size, first) or not ready():
            gathered.append(window)
            window, requests, first = [], 0, 2 * first
        # A window waits until the next one has asked for its pages: those that both need are kept.
        while len(gathered) > 1 or (gathered and not ready()):
            yield gathered.popleft()
    yield from gathered
    if window:
        yield window


@dataclass(slots=True)
class _Requests:
    """The requests of a window, and which row and page each belongs to."""

    by_number: dict[int, Request] = field(default_factory=dict)
    owner: dict[int, tuple[RowToBe, int]] = field(default_factory=dict)

    def add(self, row: RowToBe, pages: Sequence[int]) -> None:
        number = len(self.by_number)
        row.requests += 1
        ids = tuple(row.page_ids[row.pages.index(page)] for page in pages)
        prepared = tuple(row.prepared[page] for page in pages)
        self.by_number[number] = Request(number, row.job.question.text, prepared, ids)
        self.owner[number] = (row, pages[0])

    def values(self) -> Iterable[Request]:
        return self.by_number.values()


def _requests(window: Sequence[RowToBe], store: PageStore, progress: Progress) -> _Requests:
    """Wait for a window's pages and ask its questions."""
    requests = _Requests()
    waiting: dict[tuple[Document, int], list[RowToBe]] = {}
    for row in window:
        for page, _ in zip(row.pages, row.page_ids, strict=False):
            assert row.job.document is not None
            try:
                row.prepared[page] = store.prepared(row.job.document, page)
                waiting.setdefault((row.job.document, page), []).append(row)
            except RowFailedError as failure:
                row.page_failures.append(f"{failure.kind}: page {page}: {failure.words}")
                store.release(row.job.document, page)
        if row.together and row.prepared and not row.page_failures:
            requests.add(row, tuple(row.prepared))
        elif not row.together:
            for page in row.prepared:
                requests.add(row, (page,))
    for (document, page), rows in waiting.items():
        _share_cost(document, page, rows, store, progress)
    return requests


def _share_cost(document: Document, page: int, rows: Sequence[RowToBe], store: PageStore, progress: Progress) -> None:
    """Divide what a page cost among the rows of the window that first asks for it."""
    prepared = rows[0].prepared[page]
    if store.charge(document, page):
        progress.pages += 1
        progress.split_pages += prepared.split
        for row in rows:
            row.raster_ms += prepared.raster_ms / len(rows)
            row.prepare_ms += prepared.prepare_ms / len(rows)
    for _ in rows:
        store.release(document, page)
