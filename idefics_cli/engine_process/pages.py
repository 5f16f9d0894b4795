"""Lends the pixels of requests to the engine's process: 11 MB of a split page do not pass through a pipe.

Pages come in slots of the memory that page processes write into, or lie elsewhere, where more are kept than have slots.
These are copied into a free slot, once for all requests about the page that are on their way; where there is none, they
do with the pipe.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref

from idefics_cli.documents.shared_memory import SharedMemory
from idefics_cli.engine_process.messages import SentPage
from idefics_cli.records import PreparedPage


class _Lent:
    """A slot with a page, taken as long as this lives."""

    def __init__(self, slot: int, shapes: tuple[tuple[int, ...], ...], held: object) -> None:
        self.slot, self.shapes, self._held = slot, shapes, held


class Lender:
    """Lends slots, and keeps them until they are returned; thread-safe."""

    def __init__(self, memory: SharedMemory | None) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._loans: dict[int, _Lent] = {}
        self._by_page: weakref.WeakValueDictionary[str, _Lent] = weakref.WeakValueDictionary()

    @property
    def loans(self) -> int:
        """How many pages of requests are lent."""
        return len(self._loans)

    def lend(self, page: PreparedPage, page_id: str) -> SentPage:
        """Return a page as it is sent; a page with this id is held already where its pixels are on their way."""
        lent = self._found(page, page_id)
        if lent is None:
            return SentPage(page)
        with self._lock:
            loan = next(self._numbers)
            self._loans[loan] = lent
            self._by_page[page_id] = lent
        return SentPage(dataclasses.replace(page, crops=()), lent.slot, lent.shapes, loan)

    def take_back(self, loan: int) -> None:
        """Take a slot back that is not read any more."""
        with self._lock:
            lent = self._loans.pop(loan, None)
        del lent  # its arrays go without the lock

    def close(self) -> None:
        """Take everything back: the process is gone."""
        with self._lock:
            loans, self._loans = self._loans, {}
        del loans

    def _found(self, page: PreparedPage, page_id: str) -> _Lent | None:
        if self._memory is None:
            return None
        shapes = tuple(crop.shape for crop in page.crops)
        if (slot := self._memory.slot_of(page.crops)) is not None:
            return _Lent(slot, shapes, page)
        with self._lock:
            lent = self._by_page.get(page_id)
        if lent is not None and lent.shapes == shapes:
            return lent
        copied = self._memory.put(page.crops)
        return None if copied is None else _Lent(copied[0], shapes, copied[1])
