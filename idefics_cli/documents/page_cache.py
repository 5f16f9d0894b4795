"""Documents and pages that are being opened and prepared, shared by the questions that ask for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from idefics_cli.documents.page import DocumentInfo, ImageProcessor
from idefics_cli.documents.pool import PageFuture, PagePool, result_of
from idefics_cli.records import Document, PreparedPage

_REMEMBERED = 512  # documents whose page count and hash are kept for the questions that follow


@dataclass(slots=True)
class _Page:
    """A page that rows wait for."""

    page_id: str
    future: PageFuture
    rows: int = 0
    """Rows that still need it; its pixels are let go with the last."""
    is_used: bool = False
    """Whether a row has been told that it is the first."""


class PageCache:
    """Opens each document and prepares each page once for all who ask while it is needed; thread-safe."""

    def __init__(self, pool: PagePool, processor: ImageProcessor) -> None:
        self._pool, self._processor = pool, processor
        self._lock = threading.Lock()
        self._infos: OrderedDict[Document, Future[DocumentInfo]] = OrderedDict()
        self._pages: dict[tuple[Document, int], _Page] = {}

    def expect(self, document: Document) -> None:
        """Start to open a document."""
        self._opening(document)

    def info(self, document: Document) -> DocumentInfo:
        """Wait for a document.

        Raises:
            RowFailedError: it can't be opened.

        """
        return result_of(self._opening(document), DocumentInfo)

    def request(self, document: Document, page: int) -> str:
        """Start to prepare a page for one more row; return its id, by content: equal for copies of a document.

        Raises:
            RowFailedError: the document can't be opened.

        """
        info = self.info(document)
        with self._lock:
            entry = self._pages.get((document, page))
            if entry is None:
                future = self._pool.prepare(document, info, page, self._processor)
                entry = self._pages[document, page] = _Page(f"{info.digest}:{page}", future)
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

    def _opening(self, document: Document) -> Future[DocumentInfo]:
        with self._lock:
            future = self._infos.get(document)
            if future is None:
                future = self._infos[document] = self._pool.open(document)
            self._infos.move_to_end(document)
            while len(self._infos) > _REMEMBERED:
                self._infos.popitem(last=False)
            return future
