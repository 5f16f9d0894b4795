"""Which worker holds the fewest jobs: asked for every job, and quick with hundreds of workers."""

from __future__ import annotations

import heapq


class Room:
    """The workers that may get jobs, by how many each holds."""

    def __init__(self, window: int) -> None:
        """Take the jobs that a worker holds at most."""
        self._window = window
        self._counts: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # counts and workers; what is no longer so is passed over

    def put(self, index: int, count: int | None) -> None:
        """Say how many jobs a worker holds; None: it may get none."""
        if count is None:
            self._counts.pop(index, None)
            return
        self._counts[index] = count
        if count < self._window:
            heapq.heappush(self._heap, (count, index))
            if len(self._heap) > 16 + 4 * len(self._counts):
                self._heap = [(count, index) for index, count in self._counts.items() if count < self._window]
                heapq.heapify(self._heap)

    def __contains__(self, index: int) -> bool:
        return self._counts.get(index, self._window) < self._window

    def roomiest(self) -> int | None:
        """Return the worker that holds the fewest jobs, the first of several; None where none has room."""
        while self._heap:
            count, index = self._heap[0]
            if self._counts.get(index) == count:
                return index
            heapq.heappop(self._heap)
        return None

    def roomiest_but_one(self) -> int | None:
        """Return the next after it; None where there is none."""
        found = sorted((count, index) for index, count in self._counts.items() if count < self._window)
        return found[1][1] if len(found) > 1 else None
