"""Documents and pages under way in the page processes, shared by the questions that ask for them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

from idefics_cli.config import ImageGeometry
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, result_of
from idefics_cli.records import Document, PreparedPage

_REMEMBERED = 512  # documents whose page count and hash are kept for the questions that follow


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


class PageStore:
    """Opens each document and prepares each page once for all who ask while it is needed."""

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
