"""The story of a run: jobs -> pages -> requests -> answers -> rows, every arrow a bounded stream.

Every question that comes in leaves as a row (one a page with `--across each`), answered or failed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from idefics_cli.config import Across, ImageGeometry, RunSettings
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, result_of
from idefics_cli.engine.base import Engine
from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.questions.pages import select_pages
from idefics_cli.records import Answer, Document, Job, PreparedPage, Request, Row

_REMEMBERED = 512  # documents and pages whose futures are kept for the questions that follow


@dataclass(slots=True)
class Progress:
    """What a run has done so far."""

    rows: int = 0
    failed: int = 0
    skipped: int = 0
    pages: int = 0
    split_pages: int = 0


@dataclass(slots=True)
class _RowToBe:
    """A row on its way: a question, its document and pages, and what has come of them."""

    job: Job
    taken: float
    pages: tuple[int, ...] = ()
    together: bool = False
    """Whether all pages are read in one prompt."""
    key: str = ""
    failure: str | None = None
    page_ids: tuple[int, ...] = ()
    prepared: dict[int, PreparedPage] = field(default_factory=dict)
    page_failures: list[str] = field(default_factory=list)
    requests: int = 0
    """How many answers it takes."""
    answers: dict[int, Answer] = field(default_factory=dict)
    """By page; under the first page when they are read together."""
    raster_ms: float = 0.0
    prepare_ms: float = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether every answer is there."""
        return len(self.answers) == self.requests


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
        jobs: questions with their documents; read little further ahead than one window of the engine.
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
    store = _PageStore(pool, engine.geometry)
    rows = _with_keys(_looked_ahead(jobs, store, pool.workers, ready), store, engine, settings, done, progress)
    for window in _windows(rows, store, engine.window, ready):
        requests = _requests(window, store, progress)
        waiting = deque(window)
        for answer in itertools.chain(engine.answer(requests.values()), [None]):
            if answer is not None:
                row_to_be, page = requests.owner[answer.number]
                row_to_be.answers[page] = answer
            # Rows leave in order, each as soon as it is done; after the last answer, all of them.
            while waiting and (answer is None or waiting[0].is_answered):
                row = _finished(waiting.popleft(), engine.name)
                progress.rows += 1
                progress.failed += row.status == "failed"
                yield row


@dataclass(slots=True)
class _PageUnderWay:
    """A page in the page processes or just out of them."""

    number: int
    """Its identity within the run."""
    future: object
    rows: int = 0
    """Rows that still wait for it; its pixels are let go with the last."""
    is_charged: bool = False
    """Whether its cost has been given to rows."""


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


class _PageStore:
    """Documents and pages under way, shared by the questions that ask for them."""

    def __init__(self, pool: PagePool, geometry: ImageGeometry) -> None:
        self._pool, self._geometry = pool, geometry
        self._infos: OrderedDict[Document, object] = OrderedDict()
        self._pages: dict[tuple[Document, int], _PageUnderWay] = {}
        self._numbers = itertools.count()

    def expect(self, document: Document) -> None:
        """Start to open a document."""
        if document not in self._infos:
            self._infos[document] = self._pool.inspect(document)
        self._infos.move_to_end(document)
        while len(self._infos) > _REMEMBERED:
            self._infos.popitem(last=False)

    def info(self, document: Document) -> DocumentInfo:
        """Wait for a document.

        Raises:
            RowFailedError: it can't be opened.

        """
        self.expect(document)
        return result_of(self._infos[document], DocumentInfo)

    def request(self, document: Document, page: int) -> int:
        """Start to prepare a page for one more row; return its number within the run."""
        key = (document, page)
        if key not in self._pages:
            self._pages[key] = _PageUnderWay(next(self._numbers), self._pool.prepare(document, page, self._geometry))
        self._pages[key].rows += 1
        return self._pages[key].number

    def prepared(self, document: Document, page: int) -> PreparedPage:
        """Wait for a requested page.

        Raises:
            RowFailedError: it can't be prepared.

        """
        return result_of(self._pages[document, page].future, PreparedPage)

    def charge(self, document: Document, page: int) -> bool:
        """Whether a page's cost is still to be given to rows; it is, once."""
        under_way = self._pages[document, page]
        first, under_way.is_charged = not under_way.is_charged, True
        return first

    def release(self, document: Document, page: int) -> None:
        """One row waits less for a page."""
        under_way = self._pages[document, page]
        under_way.rows -= 1
        if under_way.rows == 0:
            del self._pages[document, page]


def _looked_ahead(jobs: Iterable[Job], store: _PageStore, ahead: int, ready: Callable[[], bool]) -> Iterator[Job]:
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
    store: _PageStore,
    engine: Engine,
    settings: RunSettings,
    done: Collection[str],
    progress: Progress,
) -> Iterator[_RowToBe]:
    """Turn each job into the rows it asks for, without those that are done."""
    setting_words = _answer_settings(engine, settings)
    left = settings.limit if settings.limit is not None else -1
    for job in jobs:
        for row in _rows_of(job, store, settings):
            row.key = _key(row, store, setting_words)
            if row.key in done:
                progress.skipped += 1
                continue
            if left == 0:
                return
            left -= 1
            yield row


def _rows_of(job: Job, store: _PageStore, settings: RunSettings) -> Iterator[_RowToBe]:
    taken = time.perf_counter()
    if job.document is None or job.question.failure:
        yield _RowToBe(job, taken, failure=job.question.failure or f"{FailureKind.BAD_QUESTION}: it has no document")
        return
    try:
        count = store.info(job.document).pages
        pages = select_pages(job.question.page or settings.page_selection, count)
    except RowFailedError as failure:
        yield _RowToBe(job, taken, failure=str(failure))
        return
    if settings.across is Across.EACH:
        for page in pages:
            yield _RowToBe(job, time.perf_counter(), (page,))
    else:
        yield _RowToBe(job, taken, pages, together=settings.across is Across.TOGETHER and len(pages) > 1)


def _windows(
    rows: Iterable[_RowToBe], store: _PageStore, size: int, ready: Callable[[], bool]
) -> Iterator[list[_RowToBe]]:
    """Group rows into windows of about `size` requests, whose pages are being prepared one window ahead.

    A row is never parted; one with more pages than a window makes a window of its own.
    """
    window: list[_RowToBe] = []
    ahead: deque[list[_RowToBe]] = deque()
    requests = 0
    for row in rows:
        if row.failure is None and row.job.document is not None:
            row.page_ids = tuple(store.request(row.job.document, page) for page in row.pages)
        window.append(row)
        requests += 1 if row.together else max(1, len(row.pages))
        if requests >= size or not ready():
            ahead.append(window)
            window, requests = [], 0
        # The window before last is answered while the pages of the last are being prepared.
        while len(ahead) > 1 or (ahead and not ready()):
            yield ahead.popleft()
    yield from ahead
    if window:
        yield window


@dataclass(slots=True)
class _Requests:
    """The requests of a window, and which row and page each belongs to."""

    by_number: dict[int, Request] = field(default_factory=dict)
    owner: dict[int, tuple[_RowToBe, int]] = field(default_factory=dict)

    def add(self, row: _RowToBe, pages: Sequence[int]) -> None:
        number = len(self.by_number)
        row.requests += 1
        ids = tuple(row.page_ids[row.pages.index(page)] for page in pages)
        prepared = tuple(row.prepared[page] for page in pages)
        self.by_number[number] = Request(number, row.job.question.text, prepared, ids)
        self.owner[number] = (row, pages[0])

    def values(self) -> Iterable[Request]:
        return self.by_number.values()


def _requests(window: Sequence[_RowToBe], store: _PageStore, progress: Progress) -> _Requests:
    """Wait for a window's pages and ask its questions."""
    requests = _Requests()
    waiting: dict[tuple[Document, int], list[_RowToBe]] = {}
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


def _share_cost(document: Document, page: int, rows: Sequence[_RowToBe], store: _PageStore, progress: Progress) -> None:
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


def _finished(row: _RowToBe, model: str) -> Row:
    """Reduce what came of a row to the row: of several pages, the page whose answer is most probable."""
    answered = {page: answer for page, answer in row.answers.items() if answer.failure is None}
    question, document = row.job.question, row.job.document
    best = max(answered, key=lambda page: answered[page].confidence, default=None)
    answer = answered[best] if best is not None else None
    read = tuple(row.prepared) if row.together else (best,) if best is not None else tuple(row.prepared)[:1]
    prepared = [row.prepared[page] for page in read]
    failures = (
        [row.failure] if row.failure else row.page_failures + [a.failure for a in row.answers.values() if a.failure]
    )
    warnings = [page.warning for page in prepared] + [answer.warning if answer else ""]
    if answer is not None and failures:
        warnings.append(f"{len(failures)} of {len(row.pages)} pages failed: {failures[0]}")
    every = row.answers.values()
    return Row(
        key=row.key,
        id=question.id,
        document=document.name if document else question.document or "",
        page=_page_words(read if answer is not None else row.pages) or question.page or "",
        question=question.text,
        answer=answer.text if answer else "",
        confidence=answer.confidence if answer else None,
        status="ok" if answer else "failed",
        error="" if answer else failures[0] if failures else f"{FailureKind.MODEL_ERROR}: the engine gave no answer",
        warning="; ".join(dict.fromkeys(filter(None, warnings))),
        rasterizer=prepared[0].rasterizer if prepared else "",
        split=any(page.split for page in prepared) if prepared else None,
        crops=sum(len(page.crops) for page in prepared) if prepared else None,
        prompt_tokens=answer.prompt_tokens if answer else None,
        new_tokens=answer.new_tokens if answer else None,
        batch_size=answer.batch_size if answer else None,
        raster_ms=row.raster_ms,
        prepare_ms=row.prepare_ms,
        vision_ms=sum(answer.vision_ms for answer in every),
        prefill_ms=sum(answer.prefill_ms for answer in every),
        decode_ms=sum(answer.decode_ms for answer in every),
        latency_ms=(time.perf_counter() - row.taken) * 1e3,
        model=model,
        extra=question.extra,
    )


def _page_words(pages: Sequence[int]) -> str:
    """Write pages as a selection: `3`, `1-4`, `1,3`."""
    if len(pages) > 1 and tuple(pages) == tuple(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]}-{pages[-1]}"
    return ",".join(map(str, pages))


def _answer_settings(engine: Engine, settings: RunSettings) -> list[str]:
    """Every setting that can change an answer, for the key."""
    pages, model = settings.pages, settings.model
    return [
        engine.identity,
        model.prompt,
        str(model.max_new_tokens),
        f"{pages.split} {pages.split_em:g}",
        pages.rasterizer,
        str(settings.across),
        f"{engine.geometry.longest_edge}",
    ]


def _key(row: _RowToBe, store: _PageStore, setting_words: Sequence[str]) -> str:
    """Hash what a row answers: the document's bytes, the pages, the question and the settings.

    A row whose document can't be read goes by the document's name instead.
    """
    document, question = row.job.document, row.job.question
    try:
        content = store.info(document).digest if document else f"{question.document} {question.place}"
    except RowFailedError:
        content = f"unreadable {document.name if document else ''}"
    pages = _page_words(row.pages) or question.page or ""
    words = [content, pages, question.text, question.id, document.name if document else "", *setting_words]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
