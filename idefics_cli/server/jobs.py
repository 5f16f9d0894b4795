"""Answers the jobs of `ask` and `run` that come over the user's socket, with the server's engine and page processes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket

from prometheus_client import Gauge

from idefics_cli.config import ModelSettings, flag_of
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.engine import open_engine
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.device import choose_device
from idefics_cli.errors import IdeficsCliError, ModelError, RowFailedError
from idefics_cli.local_socket.folder import connect, connection_of, listen, sockets
from idefics_cli.local_socket.handshake import Accepted, CountPages, Hello, Refused, Source, greet, greeting, received
from idefics_cli.records import Answer, Document, Generation, Request
from idefics_cli.server.kept_engine import KeptEngine
from idefics_cli.workers.feed import jobs_at_once
from idefics_cli.workers.messages import ToWorker, WorkerSpec
from idefics_cli.workers.worker import serve

_log = logging.getLogger(__name__)
_BY_REQUEST = ("--max-new-tokens", "--temperature", "--top-p", "--seed", "--stop")
"""Settings of an engine that a request may have of its own."""
_LOADING = ("batch_size", "gpu_memory", "kernels", "attention")
"""Settings that can't be changed any more; their defaults take what is there."""


class JobServer:
    """Listens on a socket; each connection has a thread."""

    def __init__(self, engine: KeptEngine, pool: PagePool, model: ModelSettings, connections: Gauge) -> None:
        """Take what answers; `connections` counts those that are open."""
        self._engine, self._pool, self._model, self._connections = engine, pool, model, connections
        self._source = Source.of(model)
        greeting()  # of the files that this process runs, not of those that may replace them
        self._device = choose_device(model)
        self._listener: socket | None = None
        self._lock = threading.Lock()
        self._open: set[_SharedEngine] = set()
        self._is_stopping = False
        self.path = Path()
        """Of the socket."""

    def listen(self) -> None:
        """Begin to take connections.

        Raises:
            UsageError: the socket can't be made.

        """
        for path in sockets():  # those of servers that were killed
            if (connection := connect(path)) is not None:
                connection.close()
        self._listener, self.path = listen(os.getpid())
        threading.Thread(target=self._accept, args=(self._listener,), name="local socket", daemon=True).start()

    @property
    def active(self) -> int:
        """How many connections wait for answers."""
        with self._lock:
            return sum(engine.in_flight > 0 for engine in self._open)

    def stop(self) -> None:
        """Take no more connections and no more requests; those that are asked are answered."""
        self._is_stopping = True
        if self.path.name:
            self.path.unlink(missing_ok=True)
        with self._lock:
            for engine in self._open:
                engine.stop()

    def close(self) -> None:
        """Stop, and withdraw what is not answered."""
        self.stop()
        if self._listener is not None:
            self._listener.close()
        with self._lock:
            for engine in self._open:
                engine.abort()

    def _accept(self, listener: socket) -> None:
        while not self._is_stopping:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            connection = connection_of(stream)
            if connection is not None:
                threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with contextlib.closing(connection), contextlib.suppress(OSError, EOFError):
            if not greet(connection):
                return
            wanted = received(connection)
            if isinstance(wanted, CountPages):
                connection.send(self._page_count(wanted))
            elif isinstance(wanted, Hello):
                self._answer(wanted, connection)

    def _answer(self, hello: Hello, connection: Connection) -> None:
        try:
            engine = self._engine_for(hello)
        except IdeficsCliError as error:
            connection.send(Refused(str(error)))
            return
        self._engine.touch()
        window = jobs_at_once(engine.info.capacity, self._pool.workers)
        connection.send(Accepted(window, engine.info.notes, dict(engine.info.settings), self._pool.workers))

        def receive() -> ToWorker:
            try:
                message: ToWorker = connection.recv()
            except (OSError, EOFError):
                engine.abort()  # nobody waits for the answers
                raise
            return message

        with self._lock:
            self._open.add(engine)
        try:
            with self._connections.track_inprogress():
                pool = self._pool.with_settings(hello.settings.pages)
                serve(WorkerSpec(hello.settings, lambda _: engine), receive, connection.send, pool=pool)
        finally:
            engine.abort()
            with self._lock:
                self._open.discard(engine)

    def _engine_for(self, hello: Hello) -> _SharedEngine:
        """Return the engine as a client with these settings would open it itself.

        Raises:
            ModelError: this one would answer otherwise; says why.
            UsageError: as `open_engine`.

        """
        settings = hello.settings.model
        if self._is_stopping:
            raise ModelError("it is stopping")
        if hello.source != self._source:
            raise ModelError("it has another model, or finds models elsewhere")
        names = dict(zip(("model", "revision", "adapter", "processor"), self._source.names, strict=True))
        wanted = open_engine(dataclasses.replace(settings, **names)).info  # type: ignore[arg-type]
        here = self._engine.info.settings
        names_there = (here.keys() | wanted.settings.keys()) - set(_BY_REQUEST)
        differ = sorted(name for name in names_there if here.get(name) != wanted.settings.get(name))
        default = ModelSettings()
        for name in _LOADING:
            if getattr(settings, name) not in (getattr(default, name), getattr(self._model, name)):
                differ.append(flag_of(name))
        if choose_device(settings).device != self._device.device:
            differ.append("--device")
        if differ:
            raise ModelError(f"it answers with other settings: {', '.join(differ)}")
        generation = _generation_of(settings, int(wanted.settings["--max-new-tokens"]))
        if max(generation.max_new_tokens or 0, settings.most_new_tokens) > max(
            self._model.most_new_tokens, int(here["--max-new-tokens"])
        ):
            raise ModelError(
                "it gives no answers as long as --max-new-tokens or a request wants (--max-answer of the server)"
            )
        is_plain = wanted.settings == here
        info = dataclasses.replace(wanted, name=settings.model)
        return _SharedEngine(self._engine, info, None if is_plain else generation)

    def _page_count(self, wanted: CountPages) -> int:
        try:
            document = Document(wanted.path, wanted.path)
            return result_of(self._pool.with_settings(wanted.settings).open(document), DocumentInfo).pages
        except RowFailedError:
            return 1


def _generation_of(settings: ModelSettings, max_new_tokens: int) -> Generation:
    return Generation(max_new_tokens, settings.temperature or 0.0, settings.top_p, settings.seed or 0, settings.stop)


class _SharedEngine:
    """The server's engine as one connection sees it; to close it leaves the engine to the others."""

    def __init__(self, engine: KeptEngine, info: EngineInfo, generation: Generation | None) -> None:
        self.info = info
        self._engine, self._generation = engine, generation
        self._lock = threading.Lock()
        self._answers: set[Future[Answer]] = set()
        self._refusal = ""

    @property
    def in_flight(self) -> int:
        """How many of its requests are not answered."""
        return len(self._answers)

    def start(self) -> None:
        """See `Engine`."""
        self._engine.start()

    def load(self) -> object:
        """See `LoadableEngine`."""
        return self._engine.load()

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`."""
        if self._refusal:
            raise ModelError(self._refusal)
        wanted = request.generation.over(self._generation) if request.generation else self._generation
        answer = self._engine.submit(dataclasses.replace(request, generation=wanted))
        with self._lock:
            self._answers.add(answer)
        answer.add_done_callback(self._done)
        if self._refusal == _LEFT:
            answer.cancel()
        return answer

    @property
    def steps(self) -> int:
        """See `SteppingEngine`."""
        return self._engine.steps

    def stop(self) -> None:
        """Refuse new requests."""
        self._refusal = self._refusal or "the server is stopping"

    def abort(self) -> None:
        """Withdraw what is not answered: nobody waits for it."""
        self._refusal = _LEFT
        with self._lock:
            answers = list(self._answers)
        for answer in answers:
            answer.cancel()

    def close(self) -> None:
        """See `Engine`."""

    def _done(self, answer: Future[Answer]) -> None:
        with self._lock:
            self._answers.discard(answer)


_LEFT = "the client has gone"
