"""Who holds which slots of the KV cache: sequences, and prefixes that sequences share. Policy only: no tensors here."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Prefix:
    """The keys and values that requests about the same pages have in common."""

    key: Hashable
    start: int
    """First slot."""
    length: int
    references: int = 0
    """Sequences that read it now."""
    is_filled: bool = False
    """Whether its keys and values are computed."""
    head: Prefix | None = None
    """The prefix that it begins with, and whose keys and values it has a copy of; kept while this one is."""


class KVCacheManager:
    """Divides slots among sequences and prefixes; a prefix that no sequence reads stays until its room is needed."""

    def __init__(self, start: int, end: int) -> None:
        self._ranges = _FreeRanges(start, end)
        self._prefixes: OrderedDict[Hashable, Prefix] = OrderedDict()

    @property
    def free_slots(self) -> int:
        """How many slots nobody holds; may be asked from any thread."""
        return self._ranges.total

    def allocate(self, length: int) -> int | None:
        """Return the first of so many consecutive slots, or None while there is no room."""
        while (start := self._ranges.allocate(length)) is None:
            if not self._evict_one():
                return None
        return start

    def free(self, start: int, length: int) -> None:
        """Return slots."""
        self._ranges.free(start, length)

    def acquire_prefix(self, key: Hashable, length: int, head: tuple[Hashable, int] | None = None) -> Prefix | None:
        """Return the prefix of that key for one more sequence, new or as it is; None while there is no room.

        Args:
            key: of the prefix.
            length: of it, its head included.
            head: key and length of the prefix that it begins with.

        """
        prefix = self._prefixes.get(key)
        if prefix is None:
            first = self.acquire_prefix(*head) if head is not None else None
            if head is not None and first is None:
                return None
            start = self.allocate(length)
            if start is None:
                if first is not None:
                    self.release_prefix(first)
                return None
            prefix = self._prefixes[key] = Prefix(key, start, length, head=first)
        self._prefixes.move_to_end(key)
        prefix.references += 1
        return prefix

    def release_prefix(self, prefix: Prefix) -> None:
        """Drop one reference; a prefix that is filled stays for later sequences."""
        prefix.references -= 1
        if prefix.references == 0 and not prefix.is_filled:
            self._evict(prefix)

    def evict_unused(self) -> None:
        """Free every prefix that no sequence reads, so that the slots between them become one range."""
        while self._evict_one():
            pass

    def _evict_one(self) -> bool:
        unused = next((prefix for prefix in self._prefixes.values() if prefix.references == 0), None)
        if unused is not None:
            self._evict(unused)
        return unused is not None

    def _evict(self, prefix: Prefix) -> None:
        del self._prefixes[prefix.key]
        self._ranges.free(prefix.start, prefix.length)
        if prefix.head is not None:
            self.release_prefix(prefix.head)


class _FreeRanges:
    """Free slots as ranges in order; the first that is long enough is taken."""

    def __init__(self, start: int, end: int) -> None:
        self._free = [(start, end)]

    @property
    def total(self) -> int:
        return sum(end - start for start, end in list(self._free))

    def allocate(self, length: int) -> int | None:
        for index, (start, end) in enumerate(self._free):
            if end - start >= length:
                self._free[index : index + 1] = [(start + length, end)] if end - start > length else []
                return start
        return None

    def free(self, start: int, length: int) -> None:
        """Take slots back and join them with their neighbours."""
        index = bisect.bisect_left(self._free, (start, start))
        merged = (start, start + length)
        if index < len(self._free) and self._free[index][0] == merged[1]:
            merged = (merged[0], self._free.pop(index)[1])
        if index > 0 and self._free[index - 1][1] == merged[0]:
            merged = (self._free.pop(index - 1)[0], merged[1])
            index -= 1
        self._free.insert(index, merged)
