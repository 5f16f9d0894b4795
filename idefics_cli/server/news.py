"""News of tokens on their way from the engine's thread to the streams of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from idefics_cli.records import GeneratedTokens


class NewsDesk:
    """Wakes the streams that there is news for, all of a step with one call to the event loop, a system call."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._told: list[News] = []

    def news(self) -> News:
        """Return what a new stream waits for."""
        return News(self)

    def tell(self, news: News) -> None:
        """Have a stream woken, from any thread."""
        with self._lock:
            self._told.append(news)
            if len(self._told) > 1:  # the loop has been called already
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            told, self._told = self._told, []
        for news in told:
            news.wake()


class News:
    """The latest tokens of an answer.

    What comes while a stream is busy, such as with a slow reader, is not kept apart: it reads the latest next.
    """

    def __init__(self, desk: NewsDesk) -> None:
        self.latest: GeneratedTokens | None = None
        self._desk, self._changed, self._is_told = desk, asyncio.Event(), False

    def tell(self, tokens: GeneratedTokens) -> None:
        """Take tokens, from the engine's thread; a stream that has not read the last ones is not told again."""
        self.latest = tokens
        if not self._is_told:
            self._is_told = True
            self._desk.tell(self)

    def wake(self) -> None:
        """Wake the stream, from the event loop."""
        self._changed.set()

    async def wait(self) -> None:
        """Wait until there is news, or for `wake`."""
        await self._changed.wait()
        self._changed.clear()
        self._is_told = False  # before `latest` is read: nothing that comes from now on is missed
