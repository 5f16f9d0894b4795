"""Documents that are being opened, shared by the questions about them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.records import Document, Job

_REMEMBERED = 512  # documents whose page count and hash are kept for the questions that follow
_REMEMBERED_BYTES = 32_000_000  # of those that came as bytes, which are held with them


class DocumentCache:
    """Opens each document once for all who ask about it one after another; thread-safe."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._infos: OrderedDict[Document, Future[DocumentInfo]] = OrderedDict()
        self._held_bytes = 0

    def expect(self, document: Document) -> None:
        """Start to open a document."""
        self._opening(document)

    def expect_all(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Start to open the documents of each job as it goes by."""
        for job in jobs:
            for document in job.documents or filter(None, [job.document]):
                self.expect(document)
            yield job

    def info(self, document: Document) -> DocumentInfo:
        """Wait for a document.

        Raises:
            RowFailedError: it can't be opened.

        """
        return result_of(self._opening(document), DocumentInfo)

    def _opening(self, document: Document) -> Future[DocumentInfo]:
        with self._lock:
            future = self._infos.get(document)
            if future is None:
                future = self._infos[document] = self._pool.open(document)
                self._held_bytes += len(document.data or b"")
            self._infos.move_to_end(document)
            while len(self._infos) > _REMEMBERED or (self._held_bytes > _REMEMBERED_BYTES and len(self._infos) > 1):
                oldest, _ = self._infos.popitem(last=False)
                self._held_bytes -= len(oldest.data or b"")
            return future
