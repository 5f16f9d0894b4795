"""Pages that are being prepared, shared by the questions that ask for them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass

from idefics_cli.documents.document_cache import DocumentCache
from idefics_cli.documents.page import ImageProcessor
from idefics_cli.documents.pool import PageFuture, PagePool, result_of
from idefics_cli.documents.shared_memory import SLOT_BYTES, SLOTS, SharedMemory
from idefics_cli.records import Document, PreparedPage


@dataclass(slots=True)
class _Page:
    """A page that rows wait for."""

    page_id: str
    future: PageFuture
    rows: int = 0
    """Rows that still need it; its pixels are let go with the last."""
    is_used: bool = False
    """Whether a row has been told that it is the first."""


class _KeptPages:
    """Prepared pages, by their ids; bounded in bytes."""

    def __init__(self, most_bytes: int, memory: SharedMemory | None) -> None:
        """Take the bound, and the memory of page processes: as long as it has room, pages stay where they lie in it."""
        self._most, self._bytes, self._memory = most_bytes, 0, memory
        self._pages: OrderedDict[str, PageFuture] = OrderedDict()
        self._in_slots: set[str] = set()
        # A slot has the size of the largest page that it has ever held.
        self._most_slots = min(SLOTS // 2, most_bytes // SLOT_BYTES)

    def get(self, page_id: str) -> PageFuture | None:
        if page_id in self._pages:
            self._pages.move_to_end(page_id)
        return self._pages.get(page_id)

    def put(self, page: _Page) -> None:
        """Keep a page that is prepared."""
        future = page.future
        if not self._most or page.page_id in self._pages or not future.done():
            return
        if future.cancelled() or future.exception() is not None:
            return
        prepared = future.result()
        if _bytes_of(prepared) > self._most:  # it would drive out all the others, and go itself
            return
        is_in_slot = self._memory is not None and self._memory.slot_of(prepared.crops) is not None
        if is_in_slot and len(self._in_slots) < self._most_slots:
            self._in_slots.add(page.page_id)
        else:  # a copy: the other slots are for pages on their way
            prepared = dataclasses.replace(prepared, crops=tuple(crop.copy() for crop in prepared.crops))
        kept = self._pages[page.page_id] = PageFuture()
        kept.set_result(prepared)
        self._bytes += _bytes_of(prepared)
        while self._bytes > self._most:
            page_id, oldest = self._pages.popitem(last=False)
            self._in_slots.discard(page_id)
            self._bytes -= _bytes_of(oldest.result())


def _bytes_of(page: PreparedPage) -> int:
    return sum(crop.nbytes for crop in page.crops)


class PageCache(DocumentCache):
    """Prepares each page once, too, for all who ask while it is needed; thread-safe."""

    def __init__(self, pool: PagePool, processor: ImageProcessor, *, kept_bytes: int = 0) -> None:
        """Take what prepares pages.

        Args:
            pool: of page processes.
            processor: makes crops.
            kept_bytes: of pages that nobody needs now and somebody may soon; the least recently used go first.

        """
        super().__init__(pool)
        self._processor = processor
        self._kept = _KeptPages(kept_bytes, pool.memory)
        self._pages: dict[tuple[Document, int], _Page] = {}

    def request(self, document: Document, page: int) -> str:
        """Start to prepare a page for one more row; return its id, by content: equal for copies of a document.

        Raises:
            RowFailedError: the document can't be opened.

        """
        info = self.info(document)
        with self._lock:
            entry = self._pages.get((document, page))
            if entry is None:
                page_id = f"{info.digest}:{page}:{self._pool.page_identity}"
                kept = self._kept.get(page_id)
                future = kept or self._pool.prepare(document, info, page, self._processor)
                entry = self._pages[document, page] = _Page(page_id, future, is_used=kept is not None)
            entry.rows += 1
            return entry.page_id

    def prepared(self, document: Document, page: int) -> PreparedPage:
        """Wait for a requested page.

        Raises:
            RowFailedError: it can't be prepared.

        """
        with self._lock:
            future = self._pages[document, page].future
        return result_of(future, PreparedPage)

    def is_first_use(self, document: Document, page: int) -> bool:
        """Whether a requested page's cost is still to be given to a row; true once."""
        with self._lock:
            entry = self._pages[document, page]
            is_first, entry.is_used = not entry.is_used, True
            return is_first

    def release(self, document: Document, page: int) -> None:
        """Drop one row's reference to a page."""
        with self._lock:
            entry = self._pages[document, page]
            entry.rows -= 1
            if entry.rows == 0:
                del self._pages[document, page]
                self._kept.put(entry)
