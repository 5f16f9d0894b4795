"""The story of a run: jobs -> pages -> requests -> answers -> rows, every arrow a bounded stream.

Every question that comes in leaves as a row (one a page with `--across each`), answered or failed.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from idefics_cli.ahead import ahead
from idefics_cli.config import Across, RunSettings
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, result_of
from idefics_cli.documents.store import PageStore
from idefics_cli.engine.base import Engine
from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.questions.pages import select_pages
from idefics_cli.records import Document, Job, PreparedPage, Request, Row
from idefics_cli.rows import PageFacts, RowToBe, answer_settings, finished_row, row_key

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
    waiting: deque[RowToBe] = deque()
    # While a window is answered, the next one is gathered and its pages are prepared.
    for window, requests in ahead((window, _requests(window, store, progress)) for window in windows):
        for part in window:
            if part.is_first:
                waiting.append(part.row)
            part.row.is_asked = part.is_last
        for answer in itertools.chain(engine.answer(requests.values()), [None]):
            if answer is not None:
                row_to_be, page = requests.owner[answer.number]
                row_to_be.answers[page] = answer
            # Rows leave in order, each as soon as it is done; after the last answer, all whose pages have been asked.
            while waiting and (waiting[0].is_answered or (answer is None and waiting[0].is_asked)):
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


@dataclass(frozen=True, slots=True)
class _Part:
    """The pages of a row that are asked in one window: a document of many pages does not fit into one."""

    row: RowToBe
    pages: tuple[int, ...]
    page_ids: tuple[int, ...]
    is_first: bool
    is_last: bool


def _windows(rows: Iterable[RowToBe], store: PageStore, size: int, ready: Callable[[], bool]) -> Iterator[list[_Part]]:
    """Group rows into windows of at most `size` requests, and ask for their pages.

    Pages that are read together are never parted. The first windows are small, so that the engine begins soon.
    """
    first = max(1, size // _FIRST_WINDOW)
    window: list[_Part] = []
    gathered: deque[list[_Part]] = deque()
    requests = 0
    for row in rows:
        pages = row.pages if row.failure is None and row.job.document is not None else ()
        start, is_last = 0, False
        while not is_last:
            limit = min(size, first)
            some = pages if row.together else pages[start : start + limit - requests]
            is_last = start + len(some) == len(pages)
            window.append(_Part(row, some, _page_ids(row, some, store), is_first=start == 0, is_last=is_last))
            start += len(some)
            requests += 1 if row.together else max(1, len(some))
            if requests >= limit or not ready():
                gathered.append(window)
                window, requests, first = [], 0, 2 * first
            # A window waits until the next one has asked for its pages: those that both need are kept.
            while len(gathered) > 1 or (gathered and not ready()):
                yield gathered.popleft()
    yield from gathered
    if window:
        yield window


def _page_ids(row: RowToBe, pages: Sequence[int], store: PageStore) -> tuple[int, ...]:
    """Ask for pages; return their numbers within the run."""
    document = row.job.document
    return tuple(store.request(document, page) for page in pages) if document is not None else ()


@dataclass(slots=True)
class _Requests:
    """The requests of a window, and which row and page each belongs to."""

    by_number: dict[int, Request] = field(default_factory=dict)
    owner: dict[int, tuple[RowToBe, int]] = field(default_factory=dict)

    def add(self, row: RowToBe, pages: Mapping[int, tuple[int, PreparedPage]]) -> None:
        """Ask a row's question of prepared pages, which come with their numbers within the run."""
        number = len(self.by_number)
        row.requests += 1
        ids, prepared = zip(*pages.values(), strict=True)
        self.by_number[number] = Request(number, row.job.question.text, prepared, ids)
        self.owner[number] = (row, next(iter(pages)))

    def values(self) -> Iterable[Request]:
        return self.by_number.values()


def _requests(window: Sequence[_Part], store: PageStore, progress: Progress) -> _Requests:
    """Wait for a window's pages and ask its questions."""
    requests = _Requests()
    sharing: dict[tuple[Document, int], list[RowToBe]] = {}
    pages: dict[tuple[Document, int], PreparedPage] = {}
    for part in window:
        row, document = part.row, part.row.job.document
        ready: dict[int, tuple[int, PreparedPage]] = {}
        for page, page_id in zip(part.pages, part.page_ids, strict=True):
            assert document is not None
            try:
                prepared = store.prepared(document, page)
            except RowFailedError as failure:
                row.page_failures.append(f"{failure.kind}: page {page}: {failure.words}")
                store.release(document, page)
                continue
            ready[page] = (page_id, prepared)
            row.facts[page] = PageFacts.of(prepared)
            pages[document, page] = prepared
            sharing.setdefault((document, page), []).append(row)
        if row.together and ready and not row.page_failures:
            requests.add(row, ready)
        elif not row.together:
            for page, numbered in ready.items():
                requests.add(row, {page: numbered})
    for (document, page), rows in sharing.items():
        _share_cost(document, page, pages[document, page], rows, store, progress)
    return requests


def _share_cost(
    document: Document, page: int, prepared: PreparedPage, rows: Sequence[RowToBe], store: PageStore, progress: Progress
) -> None:
    """Divide what a page cost among the rows of the window that first asks for it."""
    if store.charge(document, page):
        progress.pages += 1
        progress.split_pages += prepared.split
        for row in rows:
            row.raster_ms += prepared.raster_ms / len(rows)
            row.prepare_ms += prepared.prepare_ms / len(rows)
    for _ in rows:
        store.release(document, page)
