"""Lets as many requests through at once as a server takes, and none while it wants to be left alone."""

from __future__ import annotations

import asyncio

from idefics_cli.endpoint.concurrency import AdaptiveLimit, Outcome


class Gate:
    """For the requests of one event loop, in the order in which they come."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.limit = limit
        self._waiting: list[asyncio.Future[None]] = []
        self._closed_until = 0.0

    async def enter(self) -> int:
        """Wait for room; returns what `leave` wants."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.limit.has_room:
                changed = loop.create_future()
                self._waiting.append(changed)
                await changed
            elif (seconds := self._closed_until - loop.time()) > 0:
                await asyncio.sleep(seconds)
            else:
                return self.limit.enter()

    def leave(self, ticket: int, outcome: Outcome, *, pause: float = 0.0) -> None:
        """Take what came of a request; `pause` lets none through for so many seconds."""
        self.limit.leave(ticket, outcome)
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + pause)
        waiting, self._waiting = self._waiting, []
        for changed in waiting:  # each looks again whether there is room
            if not changed.done():
                changed.set_result(None)
