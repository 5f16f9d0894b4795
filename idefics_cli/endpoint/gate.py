"""Lets as many requests through at once as a server takes, and none while it wants to be left alone."""

from __future__ import annotations

import asyncio

from idefics_cli.endpoint.concurrency import AdaptiveLimit, Outcome


class Gate:
    """For the requests of one event loop, in the order in which they come."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.limit = limit
        self._turn = asyncio.Lock()  # who waits for it gets it in the order of coming
        self._left = asyncio.Event()
        self._closed_until = 0.0

    async def enter(self) -> int:
        """Wait for room; returns what `leave` wants."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                if not self.limit.has_room:
                    self._left.clear()
                    await self._left.wait()
                elif (seconds := self._closed_until - loop.time()) > 0:
                    await asyncio.sleep(seconds)
                else:
                    return self.limit.enter()

    def leave(self, ticket: int, outcome: Outcome, *, pause: float = 0.0) -> None:
        """Take what came of a request; `pause` lets none through for so many seconds."""
        self.limit.leave(ticket, outcome)
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + pause)
        self._left.set()
