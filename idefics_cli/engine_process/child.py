"""What runs in the engine's process: requests come over the connection, and what becomes of them goes back."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import mmap
import os
import queue
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from idefics_cli.child_process import connect_to_parent
from idefics_cli.documents.shared_memory import SLOT_BYTES, SLOTS, map_memory, read_crops, slot_buffer
from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineStats
from idefics_cli.engine_process.messages import (
    Answered,
    Cancel,
    EngineSpec,
    Failed,
    FromEngine,
    Grown,
    Loaded,
    Logged,
    News,
    NotLoaded,
    SentPage,
    Submit,
    ToEngine,
    undecoded,
)
from idefics_cli.errors import IdeficsCliError, ModelError
from idefics_cli.records import Answer, GeneratedTokens, PreparedPage

_SWITCH_SECONDS = 0.0005
_GATHER_SECONDS = 0.0005  # from the first token of a step to the last
_LOOK_SECONDS = 0.1  # between looks at an engine that does something and tells nothing


def main(descriptor: int, parent: int) -> None:
    """Be the engine of the parent until it sends no more, or has gone."""
    connection = connect_to_parent(descriptor, parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of a service, whose server answers what was asked
    # Threads that read requests and send answers are not to keep the engine's from its next step for long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    with contextlib.suppress(EOFError, OSError):  # the parent wants nothing more
        serve(connection.recv(), connection)
    os._exit(0)  # threads that wait for the parent are not waited for


def serve(spec: EngineSpec, connection: Connection) -> None:
    """Load the weights and answer requests until there are no more; raises EOFError then."""
    reporter = Reporter(connection.send)
    log = logging.getLogger("idefics_cli")
    log.handlers[:], log.propagate = [_LogHandler(reporter.put)], False
    log.setLevel(spec.log_level)
    try:
        memory = _mapped(spec.memory)
        engine = spec.open_engine(spec.settings)
        engine.load()
    except IdeficsCliError as error:
        reporter.put(NotLoaded(type(error)(str(error))))  # without what it holds on to
        reporter.close()
        return
    except Exception:
        reporter.put(NotLoaded(traceback.format_exc()))
        reporter.close()
        return
    requests = Requests(engine, memory, reporter.put)
    reporter.watch(engine, requests)
    reporter.put(Loaded(dict(engine.info.settings)))
    try:
        while True:
            for message in connection.recv():
                requests.take(message)
    finally:
        engine.close()


def _mapped(descriptor: int | None) -> mmap.mmap | None:
    """Map the memory that pages come in; raises ModelError where that can't be."""
    if descriptor is None:
        return None
    try:
        return map_memory(descriptor)
    except OSError as error:
        words = f"its process can't map the {SLOTS * SLOT_BYTES / 1e9:.1f} GB of addresses that pages lie in"
        raise ModelError(f"{words}: {error.strerror or error}; is there a limit (ulimit -v)?") from error


class _Watcher:
    """A request whose tokens are told."""

    __slots__ = ("number", "sent")

    def __init__(self, number: int) -> None:
        self.number, self.sent = number, 0


class _Told(NamedTuple):
    """The tokens so far."""

    watcher: _Watcher
    tokens: GeneratedTokens


class _Returned(NamedTuple):
    """Nothing reads a slot any more."""

    loan: int


class _Taken(NamedTuple):
    """The engine has a new request; it is looked at from now on."""

    number: int


_Event = _Told | _Returned | _Taken | Answered | Failed | Logged | Loaded | NotLoaded | None
_Put = Callable[[_Event], None]


class Requests:
    """The requests that the engine has not answered. One thread calls it."""

    def __init__(self, engine: DeferredEngine, memory: mmap.mmap | None, put: _Put) -> None:
        """Take the engine, the memory that pages may lie in, and what is told of answers, from any thread."""
        self._engine, self._memory, self._put = engine, memory, put
        self._futures: dict[int, Future[Answer]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether all are answered."""
        return not self._futures

    def take(self, message: ToEngine) -> None:
        """Do what the parent says."""
        if isinstance(message, Cancel):
            if (future := self._futures.get(message.number)) is not None:
                future.cancel()
            return
        try:
            future = self._submitted(message)
        except Exception as error:  # it costs this request
            self._put(Failed(message.number, _plain(error)))
            return
        self._futures[message.number] = future
        self._put(_Taken(message.number))
        future.add_done_callback(partial(self._done, message.number))

    def _submitted(self, message: Submit) -> Future[Answer]:
        watcher = _Watcher(message.number)
        on_tokens = (lambda tokens: self._put(_Told(watcher, tokens))) if message.is_watched else None
        pages = tuple(map(self._page, message.pages))
        return self._engine.submit(dataclasses.replace(message.request, pages=pages, on_tokens=on_tokens))

    def _page(self, sent: SentPage) -> PreparedPage:
        """Return a page; its slot is returned when the last array over it is gone, whoever held it."""
        if sent.slot is None:
            return sent.page
        assert self._memory is not None
        buffer = slot_buffer(self._memory, sent.slot)
        weakref.finalize(buffer, self._put, _Returned(sent.loan)).atexit = False
        return dataclasses.replace(sent.page, crops=read_crops(buffer, sent.shapes))

    def _done(self, number: int, future: Future[Answer]) -> None:
        self._futures.pop(number, None)
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self._put(Failed(number, _plain(error)))
            return
        answer = future.result()
        if answer.tokens is not None:
            answer = dataclasses.replace(answer, tokens=dataclasses.replace(answer.tokens, decode=undecoded))
        self._put(Answered(number, answer))


class Reporter:
    """Sends what has happened since it last did; one message for all requests of a step."""

    def __init__(self, send: Callable[[FromEngine], None]) -> None:
        """Start the thread, the only one that sends."""
        self._send = send
        # Its `put` may be called by a finalizer, in the midst of another call of it.
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self.put: _Put = self._events.put
        """Take an event, from any thread; None ends it."""
        self._engine: DeferredEngine | None = None
        self._requests: Requests | None = None
        self._last: tuple[EngineStats, int] = (EngineStats(), 0)
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def watch(self, engine: DeferredEngine, requests: Requests) -> None:
        """Send what an engine is doing, too."""
        self._engine, self._requests = engine, requests

    def close(self) -> None:
        """Send what there is, and end."""
        self.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                events = self._gathered()
                if events or self._now() != self._last:
                    self._report(events)
                if None in events:
                    return
        except OSError:
            return  # the parent has gone

    def _gathered(self) -> list[_Event]:
        """Wait for events, or until it is time to look at the engine."""
        try:
            events = [self._events.get(timeout=None if self._is_at_rest else _LOOK_SECONDS)]
        except queue.Empty:
            return []
        if isinstance(events[0], _Told):
            time.sleep(_GATHER_SECONDS)
        while not self._events.empty():
            events.append(self._events.get())
        return events

    @property
    def _is_at_rest(self) -> bool:
        """Whether nothing changes from now on by itself, and all is told."""
        if self._requests is None:
            return True
        stats, _ = now = self._now()
        return self._requests.is_empty and stats.running == stats.waiting == 0 and now == self._last

    def _now(self) -> tuple[EngineStats, int]:
        return (EngineStats(), 0) if self._engine is None else (self._engine.stats, self._engine.steps)

    def _report(self, events: list[_Event]) -> None:
        told = {event.watcher: event.tokens for event in events if isinstance(event, _Told)}
        self._last = self._now()
        news = News(
            *self._last,
            tuple(_grown(watcher, tokens) for watcher, tokens in told.items()),
            tuple(event for event in events if isinstance(event, Answered)),
            tuple(event for event in events if isinstance(event, Failed)),
            tuple(event.loan for event in events if isinstance(event, _Returned)),
            tuple(event for event in events if isinstance(event, Logged)),
        )
        self._send(news)
        for event in events:
            if isinstance(event, Loaded | NotLoaded):
                self._send(event)


def _grown(watcher: _Watcher, tokens: GeneratedTokens) -> Grown:
    """Return what tokens add to those that were sent; all of them where a sequence has begun anew."""
    start = watcher.sent if watcher.sent <= len(tokens.ids) else 0
    watcher.sent = len(tokens.ids)
    return watcher.number, start, tokens.ids[start:], tokens.logprobs[start:], tokens.stop


def _plain(error: BaseException) -> Exception:
    """Return an error as it can be sent: without what it holds on to."""
    if isinstance(error, ModelError):
        return ModelError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


class _LogHandler(logging.Handler):
    """Sends messages of the log."""

    def __init__(self, put: _Put) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        self._put(Logged(record.name, record.levelno, self.format(record)))
