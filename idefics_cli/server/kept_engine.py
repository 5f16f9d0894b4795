"""An engine that lets its weights go when nothing is asked, and loads them again when something is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer, Request


class KeptEngine:
    """The engine of a server; thread-safe."""

    def __init__(
        self,
        open_engine: Callable[[], DeferredEngine],
        *,
        keep_alive: float | None = None,
        on_idle: Callable[[], None] = lambda: None,
        on_failure: Callable[[ModelError], None] = lambda _: None,
    ) -> None:
        """Open the checkpoint; nothing is loaded yet.

        Args:
            open_engine: opens it, now and whenever weights are wanted that were let go.
            keep_alive: seconds without a request after which the weights are let go; None never does.
            on_idle: told when they were, from a thread.
            on_failure: told when the device has failed so that this process can't go on, from a thread.

        Raises:
            ModelError: no such checkpoint, or one that can't be run.

        """
        self._open, self._keep_alive = open_engine, keep_alive
        self._on_idle, self._on_failure = on_idle, on_failure
        self._engine: DeferredEngine | None = open_engine()
        self.info: EngineInfo = self._engine.info
        self._changed = threading.Condition()
        self._in_flight = 0
        self._idle_since = time.monotonic()
        self._is_closed = False
        if keep_alive is not None:
            threading.Thread(target=self._watch, args=(keep_alive,), name="keep alive", daemon=True).start()

    def start(self) -> None:
        """See `Engine`."""
        with self._changed:
            engine = self._current()
        engine.start()

    def load(self) -> object:
        """See `LoadableEngine`; weights that can't be loaded are tried again by the next request."""
        with self._used():
            return self._loaded()

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`; waits for the weights."""
        with self._used():
            answer = self._loaded().submit(request)
            with self._changed:
                self._in_flight += 1
        answer.add_done_callback(self._answered)
        return answer

    def close(self) -> None:
        """See `Engine`."""
        with self._changed:
            self._is_closed = True
            engine, self._engine = self._engine, None
            self._changed.notify_all()
        if engine is not None:
            engine.close()

    @property
    def steps(self) -> int:
        """See `SteppingEngine`."""
        engine = self._engine
        return 0 if engine is None else engine.steps

    @property
    def stats(self) -> EngineStats:
        """See `LoadedEngine`."""
        engine = self._engine
        return EngineStats() if engine is None else engine.stats

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        engine = self._engine
        return engine is not None and engine.is_loaded

    def touch(self) -> None:
        """Start the time anew after which the weights are let go."""
        with self._changed:
            self._idle_since = time.monotonic()
            self._changed.notify_all()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Keep the weights meanwhile."""
        with self._changed:
            self._in_flight += 1
        try:
            yield
        finally:
            self._done()

    def _loaded(self) -> DeferredEngine:
        with self._changed:
            engine = self._current()
        try:
            engine.load()
        except ModelError:
            with self._changed:
                if self._engine is engine:
                    self._engine = None
            raise
        return engine

    def _current(self) -> DeferredEngine:
        """Return the engine, opened anew if need be; the lock is held."""
        if self._is_closed:
            raise ModelError("the engine has been closed")
        if self._engine is None:
            engine = self._open()
            if engine.info.settings != self.info.settings:
                raise ModelError(
                    f"{self.info.name}: its files have changed since the server was started: start it again"
                )
            self._engine = engine
        return self._engine

    def _answered(self, answer: Future[Answer]) -> None:
        if not answer.cancelled() and isinstance(error := answer.exception(), ModelError) and not self._is_closed:
            self._on_failure(error)
        self._done()

    def _done(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._idle_since = time.monotonic()
            self._changed.notify_all()

    def _watch(self, keep_alive: float) -> None:
        """Let the weights go whenever nothing was asked for so many seconds."""
        with self._changed:
            while not self._is_closed:
                left = keep_alive - (time.monotonic() - self._idle_since)
                if self._in_flight or self._engine is None:
                    self._changed.wait()
                elif left > 0:
                    self._changed.wait(left)
                else:
                    engine, self._engine = self._engine, None
                    self._changed.release()
                    try:
                        engine.close()
                        self._on_idle()
                    finally:
                        self._changed.acquire()
