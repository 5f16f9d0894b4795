"""Who holds which slots of the cache: rows their own, and prefixes that rows share. Policy alone: no tensors here."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class Prefix:
    """What questions about the same pages have in common: a run of slots."""

    start: int
    length: int
    rows: int = 0
    """Rows that read it now."""
    is_filled: bool = False
    """Whether its keys and values are there."""


class SlotTable:
    """Divides slots among rows and prefixes; a prefix that no row reads stays until its place is needed."""

    def __init__(self, start: int, end: int) -> None:
        self._runs = _Runs(start, end)
        self._prefixes: OrderedDict[Hashable, Prefix] = OrderedDict()

    def take(self, length: int) -> int | None:
        """Return the first slot of a run for a row, or None while there is no room."""
        while (start := self._runs.take(length)) is None:
            if not self._forget_one():
                return None
        return start

    def forget_unused(self) -> None:
        """Let every prefix go that no row reads: free slots that lie between them become one run."""
        while self._forget_one():
            pass

    def give_back(self, start: int, length: int) -> None:
        """End a row's hold on its run."""
        self._runs.give_back(start, length)

    def share(self, key: Hashable, length: int) -> Prefix | None:
        """Return the prefix of that key for one more row, new or as it is; None while there is no room."""
        prefix = self._prefixes.get(key)
        if prefix is None:
            start = self.take(length)
            if start is None:
                return None
            prefix = self._prefixes[key] = Prefix(start, length)
        self._prefixes.move_to_end(key)
        prefix.rows += 1
        return prefix

    def release(self, prefix: Prefix) -> None:
        """One row reads a prefix no more; it stays if it is filled."""
        prefix.rows -= 1
        if prefix.rows == 0 and not prefix.is_filled:
            key = next(key for key, other in self._prefixes.items() if other is prefix)
            del self._prefixes[key]
            self._runs.give_back(prefix.start, prefix.length)

    def _forget_one(self) -> bool:
        key = next((key for key, prefix in self._prefixes.items() if prefix.rows == 0), None)
        if key is None:
            return False
        unused = self._prefixes.pop(key)
        self._runs.give_back(unused.start, unused.length)
        return True


class _Runs:
    """Free slots as runs in order; the first that is long enough is taken."""

    def __init__(self, start: int, end: int) -> None:
        self._free = [(start, end)]

    def take(self, length: int) -> int | None:
        """Return the first slot of a run, or None where there is no such run."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= length:
                self._free[index : index + 1] = [(start + length, end)] if end - start > length else []
                return start
        return None

    def give_back(self, start: int, length: int) -> None:
        """Take a run back and join it with its neighbours."""
        index = bisect.bisect_left(self._free, (start, start))
        run = (start, start + length)
        if index < len(self._free) and self._free[index][0] == run[1]:
            run = (run[0], self._free.pop(index)[1])
        if index > 0 and self._free[index - 1][1] == run[0]:
            run = (self._free.pop(index - 1)[0], run[1])
            index -= 1
        self._free.insert(index, run)
