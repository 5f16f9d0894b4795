"""How much the server holds at once: requests, and bytes of their bodies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from idefics_cli.openai_api.errors import ApiError

_RETRY_AFTER = 2  # seconds
_BODIES = 8  # of the largest size

STOPPING = "stopping"
"""The code of a refusal by a server that stops."""


class Admission:
    """Lets requests in while there is room. Used from the event loop alone."""

    def __init__(self, max_requests: int, max_body: int) -> None:
        """Take how many requests are held at most, and how large a body may be, in bytes."""
        self._max_requests, self.max_body = max_requests, max_body
        self._max_bytes = _BODIES * max_body
        self._bytes = 0
        self.held = 0
        """Requests that are held now."""
        self.is_stopping = False
        """Whether no more are let in."""

    @contextmanager
    def request(self) -> Iterator[BodyRoom]:
        """Hold a request.

        Raises:
            ApiError: the server is stopping (503), or full (429).

        """
        if self.is_stopping:
            raise ApiError(503, "the server is stopping", code=STOPPING, retry_after=_RETRY_AFTER)
        if self.held >= self._max_requests:
            raise _full(f"{self.held} requests are held already (--max-queue)")
        self.held += 1
        room = BodyRoom(self)
        try:
            yield room
        finally:
            room.release()
            self.held -= 1

    def take(self, size: int) -> None:
        """Make room for bytes of a body; raises ApiError (429) where there is none."""
        if self._bytes + size > self._max_bytes:
            raise _full("the bodies of requests fill the memory that they may take")
        self._bytes += size

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        self._bytes -= size


class BodyRoom:
    """The room that the body of one request takes."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._size = admission, 0

    def grow(self, size: int) -> None:
        """Make room for a body of so many bytes in all.

        Raises:
            ApiError: it is too large (413), or there is no room (429).

        """
        largest = self._admission.max_body
        if size > largest:
            shown = f"{math.ceil(size / 1e5) / 10:g} MB or more"
            words = f"the body has {shown}; at most {largest / 1e6:g} MB are taken (--max-body)"
            raise ApiError(413, words, code="body_too_large")
        if size > self._size:
            self._admission.take(size - self._size)
            self._size = size

    def release(self) -> None:
        """Return the room; the body is let go."""
        self._admission.give_back(self._size)
        self._size = 0


def _full(words: str) -> ApiError:
    return ApiError(429, f"the server is full: {words}; come again", code="full", retry_after=_RETRY_AFTER)
