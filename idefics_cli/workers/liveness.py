"""Workers that hang: seen by the worker itself where its engine does no step, by the driver where it says nothing.

A thread that only says that it lives would go on beside an engine that hangs. So the worker counts for how long its
engine has had requests and has done no step, and says so at every beat; a worker that does not even beat has stopped as
a whole. Both count only time in which the one who counts was running itself, a beat's length at a time: a machine that
slept, or a process that was stopped and goes on, is not taken for one that hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LONGEST_BEAT = 10.0  # seconds
_BEATS = 4  # in the time after which a worker is replaced, at least


def beat_seconds(limit: float) -> float:
    """Return how often a worker shows that it lives, given the seconds after which one that hangs is replaced."""
    return min(_LONGEST_BEAT, limit / _BEATS)


class Stopwatch:
    """Counts seconds since it was last set to zero, of a long gap between two looks at it no more than two beats."""

    def __init__(self, beat: float) -> None:
        self.seconds = 0.0
        self._most = 2 * beat
        self._last: float | None = None

    def look(self, now: float, *, is_zero: bool) -> float:
        """Return what it shows at a time of the monotonic clock; with `is_zero` it begins anew."""
        gap = min(now - self._last, self._most) if self._last is not None else 0.0
        self._last = now
        self.seconds = 0.0 if is_zero else self.seconds + gap
        return self.seconds


class EngineWatch:
    """Counts for how long an engine has had requests and has done no step."""

    def __init__(self, beat: float) -> None:
        self._stopwatch = Stopwatch(beat)
        self._steps = -1

    def look(self, now: float, in_flight: int, steps: int) -> float:
        """Return the seconds, given the requests that are not answered and the steps so far."""
        is_zero = in_flight == 0 or steps != self._steps
        self._steps = steps
        return self._stopwatch.look(now, is_zero=is_zero)


class Silence:
    """Counts for how long workers have reported nothing; kept by the driver."""

    def __init__(self, beat: float) -> None:
        self._beat = beat
        self._stopwatches: dict[int, Stopwatch] = {}

    def heard(self, index: int, now: float) -> None:
        """Say that a worker has reported, or was started."""
        self._stopwatches.setdefault(index, Stopwatch(self._beat)).look(now, is_zero=True)

    def forget(self, index: int) -> None:
        """Say that a worker has ended."""
        self._stopwatches.pop(index, None)

    def longer_than(self, limit: float, now: float) -> list[int]:
        """Return the workers that have reported nothing for so many seconds."""
        return [index for index, stopwatch in self._stopwatches.items() if stopwatch.look(now, is_zero=False) > limit]


class Heartbeat:
    """Calls a function at every beat, from a thread, until it is ended."""

    def __init__(self, beat: float, call: Callable[[], None]) -> None:
        self._beat, self._call = beat, call
        self._is_ended = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def end(self) -> None:
        """Stop calling."""
        self._is_ended.set()

    def _run(self) -> None:
        while not self._is_ended.wait(self._beat):
            self._call()
