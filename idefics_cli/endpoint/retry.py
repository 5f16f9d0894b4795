"""When a request is sent again, how often, and when a server counts as gone. No network, no clock of its own."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

_LONGEST_DELAY = 8.0
_LONGEST_RETRY_AFTER = 120.0
_TRIES = 8.0


def backoff(tries: int, first: float, random: float) -> float:
    """Return the seconds before a further try: twice as many each time, up to 8, less up to a half at random.

    Args:
        tries: so far, from 1.
        first: seconds before the second try.
        random: from 0 to 1.

    """
    return min(_LONGEST_DELAY, first * 2.0 ** min(tries - 1, 32)) * (1 - 0.5 * random)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds after which a server wants to be asked again, 120 at most; None where it does not say.

    Args:
        headers: of its response; looked up in lower case.
        now: seconds since the epoch.

    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds):
            return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
    return None


class Health:
    """Whether requests pass, and since when none does."""

    def __init__(self, patience: float) -> None:
        """Take the seconds without a request that passes after which the server is gone."""
        self._patience = patience
        self._down_since: float | None = None
        self.last_passed: float | None = None

    def passed(self, now: float) -> None:
        """Take note of a request that was answered, be it by a refusal."""
        self.last_passed, self._down_since = now, None

    def failed(self, now: float) -> bool:
        """Take note of a failure; returns whether the server is gone."""
        if self._down_since is None:
            self._down_since = now
        return now - self._down_since >= self._patience

    def has_passed_since(self, when: float) -> bool:
        """Whether a request has passed since then."""
        return self.last_passed is not None and self.last_passed >= when

    def down_for(self, now: float) -> float:
        """Return for how many seconds nothing has passed though it was tried."""
        return 0.0 if self._down_since is None else now - self._down_since


class RetryBudget:
    """What one request may cost in failures of its own, not of the server as a whole."""

    def __init__(self) -> None:
        self._left = _TRIES

    def spend(self, cost: float) -> bool:
        """Take a failure's cost, 1 for an ordinary one; returns whether the request is to be given up."""
        self._left -= cost
        return self._left <= 1e-9
