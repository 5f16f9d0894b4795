"""The keys of the rows that an output holds, counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class KeyList:
    """Collects keys, 16 bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, key: str) -> None:
        """Add the key of one row.

        Raises:
            ValueError: it is not 32 hexadecimal digits.

        """
        data = bytes.fromhex(key)
        if len(data) != 16:
            raise ValueError(f"{key!r} is no key")
        self._bytes += data

    def answered(self) -> Answered:
        """Return them as a multiset; nothing can be added afterwards."""
        return Answered(np.frombuffer(self._bytes, dtype=">u8").reshape(-1, 2))


class Answered:
    """A multiset of keys from which keys are taken, in the order of their rows; 37 bytes a key."""

    def __init__(self, keys: NDArray[np.uint64] | None = None) -> None:
        """Sort the keys.

        Args:
            keys: (rows, 2), the upper and the lower half of each.

        """
        halves = np.zeros((0, 2), np.uint64) if keys is None else keys
        self._rows = np.lexsort((halves[:, 1], halves[:, 0])).astype(np.uint32)
        self._upper = halves[self._rows, 0].astype(np.uint64)
        self._lower = halves[self._rows, 1].astype(np.uint64)
        self._taken = np.zeros(len(halves), bool)
        self._repeated: dict[int, int] = {}  # how many of an equal key were taken, where it is more than one
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def left(self) -> int:
        """How many keys were not taken."""
        return len(self) - int(np.count_nonzero(self._taken))

    def take(self, key: str) -> bool:
        """Take one row with this key, if one is left; may be called from any thread."""
        return self.take_row(key) is not None

    def take_row(self, key: str) -> int | None:
        """Take one row with this key, and return its number, from 0; None where none is left."""
        upper, lower = np.uint64(int(key[:16], 16)), np.uint64(int(key[16:], 16))
        first = int(np.searchsorted(self._upper, upper))
        while self._has(first, upper) and self._lower[first] < lower:
            first += 1
        with self._lock:
            used = self._repeated.get(first, 1)
            index = first + used if self._has(first, upper) and self._taken[self._rows[first]] else first
            if not self._has(index, upper) or self._lower[index] != lower:
                return None
            row = int(self._rows[index])
            self._taken[row] = True
            if index > first:
                self._repeated[first] = used + 1
            return row

    def _has(self, index: int, upper: np.uint64) -> bool:
        return index < len(self._upper) and bool(self._upper[index] == upper)

    def is_taken(self, row: int) -> bool:
        """Whether the key of the row with this number, from 0, was taken."""
        return bool(self._taken[row])

    def contested(self) -> Iterator[NDArray[np.uint32]]:
        """Yield the rows of each key that was taken for some of its rows and not for others, in their order."""
        if not len(self):
            return
        is_first = np.ones(len(self), bool)
        is_first[1:] = (self._upper[1:] != self._upper[:-1]) | (self._lower[1:] != self._lower[:-1])
        starts = np.flatnonzero(is_first)
        ends = np.append(starts[1:], len(self))
        taken = np.add.reduceat(self._taken[self._rows].astype(np.int64), starts)
        for group in np.flatnonzero((taken > 0) & (taken < ends - starts)).tolist():
            yield self._rows[starts[group] : ends[group]]

    def retake(self, rows: NDArray[np.uint32], preferred: NDArray[np.bool_]) -> None:
        """Of rows with an equal key, let the preferred ones be those that are taken, as many as were.

        Nothing may be taken afterwards.
        """
        count = int(np.count_nonzero(self._taken[rows]))
        order = np.argsort(~preferred, kind="stable")
        self._taken[rows] = False
        self._taken[rows[order[:count]]] = True
