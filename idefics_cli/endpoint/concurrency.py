"""How many requests a server gets at once: fewer where it says that it has too many, then more again. No network."""

from __future__ import annotations

from enum import Enum, auto

_START = 8
_FAILURES_OF_OUTAGE = 8


class Outcome(Enum):
    """What came of a request, as far as the number of requests depends on it."""

    PASSED = auto()
    OVERLOADED = auto()
    """The server has too many (429, 503), or did not answer in time."""
    FAILED = auto()
    UNKNOWN = auto()
    """It was withdrawn."""


class AdaptiveLimit:
    """Additive increase, multiplicative decrease, as TCP does it, with a start that doubles.

    A server that fails several times in a row without one request that passes gets one at a time until one passes.
    """

    def __init__(self, most: int) -> None:
        """Begin with a few requests; `most` is never exceeded."""
        self._most = most
        self._limit = float(min(most, _START))
        self._is_starting = True
        self._cuts = 0
        self._failures = 0
        self.in_flight = 0

    @property
    def size(self) -> int:
        """How many requests there may be at once."""
        return int(self._limit)

    @property
    def has_room(self) -> bool:
        """Whether another request may be sent."""
        return self.in_flight < self.size

    @property
    def is_outage(self) -> bool:
        """Whether only probes are sent."""
        return self._failures >= _FAILURES_OF_OUTAGE

    @property
    def failures(self) -> int:
        """Failures since a request passed."""
        return self._failures

    def enter(self) -> int:
        """Count a request that is sent; returns what `leave` wants."""
        self.in_flight += 1
        return self._cuts

    def leave(self, ticket: int, outcome: Outcome) -> None:
        """Take what came of a request.

        Of the requests that were sent before the limit was cut, others that are overloaded don't cut it again.
        """
        is_full = self.in_flight >= self.size
        self.in_flight -= 1
        if outcome is Outcome.PASSED:
            self._failures = 0
            if is_full:
                self._limit = min(self._most, self._limit + (1.0 if self._is_starting else 1.0 / self._limit))
        elif outcome is Outcome.OVERLOADED and ticket == self._cuts:
            self._cut(self._limit / 2)
            self._is_starting = False
        elif outcome is Outcome.FAILED:
            self._failures += 1
            if self._failures == _FAILURES_OF_OUTAGE:
                self._cut(1.0)
                self._is_starting = True

    def _cut(self, limit: float) -> None:
        self._limit = max(1.0, limit)
        self._cuts += 1
