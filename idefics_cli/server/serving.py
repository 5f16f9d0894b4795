"""Runs a server until it is told to stop: the engine, page processes, HTTP, and the socket for `ask` and `run`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import uvicorn

from idefics_cli.config import ModelSettings, PageSettings, ServeSettings, Split
from idefics_cli.documents.pool import PagePool
from idefics_cli.documents.shared_memory import SharedMemory, shared_memory
from idefics_cli.engine import DeferredEngine
from idefics_cli.engine_process.parent import open_in_process
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.server.admission import Admission
from idefics_cli.server.app import make_app
from idefics_cli.server.chat import ChatPreparer
from idefics_cli.server.completions import ChatCompletions
from idefics_cli.server.jobs import JobServer
from idefics_cli.server.kept_engine import KeptEngine
from idefics_cli.server.metrics import Metrics

_POLL_SECONDS = 0.05
_SWITCH_SECONDS = 0.0005
_SECONDS_TO_REFUSE = 2.0  # what was not answered in time
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)  # what another port helps against


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything a server is told."""

    model: ModelSettings = field(default_factory=ModelSettings)
    pages: PageSettings = field(default_factory=PageSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    allow_urls: bool = False
    api_key: str | None = field(default=None, repr=False)


class OpenServed(Protocol):
    """Opens the engine of a server."""

    def __call__(
        self, settings: ModelSettings, *, memory: SharedMemory | None, on_lost: Callable[[ModelError], None]
    ) -> DeferredEngine:
        """See `open_in_process`."""


class Server:
    """A server; `run` is its life."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        open_with: OpenServed = open_in_process,
        on_ready: Callable[[str], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the checkpoint and the page processes; nothing is loaded yet.

        Args:
            settings: of the server.
            open_with: opens the checkpoint.
            on_ready: told once where it can be asked, in words.
            on_note: told what a user should know.

        Raises:
            ModelError: no such checkpoint, or one that can't be run.
            UsageError: its pages can't be split as the settings want.

        """
        self._settings, self._on_ready, self._on_note = settings, on_ready, on_note
        serve = settings.serve
        self._stop = threading.Event()
        self.failure: ModelError | None = None
        """Of the device, which ends the server."""
        self._is_told = False
        self.signal = signal.SIGTERM
        """That it was told to stop with."""
        # Page processes write into it, and the engine's process reads from it.
        self._memory = memory = shared_memory()
        self.engine = KeptEngine(
            lambda: open_with(settings.model, memory=memory, on_lost=self._failed),
            keep_alive=serve.keep_alive.seconds if serve.keep_alive else None,
            on_idle=self._idle,
            on_failure=self._failed,
        )
        refusal, split = self.engine.info.split_refusal, settings.pages.split
        if refusal and split is not Split.AUTO:
            raise UsageError(f"--split {split}: {self.engine.info.name}: {refusal}; leave --split out")
        self.metrics = Metrics(lambda: self.engine.stats, lambda: self.engine.is_loaded)
        self.admission = Admission(serve.max_queue, serve.max_body_bytes)

    def run(self) -> bool:
        """Load the weights and answer until SIGTERM or SIGINT; says whether everything that was asked was answered.

        Raises:
            ModelError: the weights can't be loaded, or the device failed.
            UsageError: it can't listen where it is told to.

        """
        serve = self._settings.serve
        with contextlib.ExitStack() as stack:
            stack.callback(self.engine.close)
            sockets = [] if serve.socket else [stack.enter_context(listening(serve))]
            pool = stack.enter_context(PagePool(self._settings.pages, memory=self._memory))
            jobs = JobServer(self.engine, pool, self._settings.model, self.metrics.local_jobs)
            stack.callback(jobs.close)
            jobs.listen()
            # Threads that read bodies are not to keep the one that sends tokens for long.
            sys.setswitchinterval(_SWITCH_SECONDS)
            self.engine.load()
            place = f"http://{_shown_host(serve.host)}:{sockets[0].getsockname()[1]}/v1 and " if sockets else ""
            self._on_ready(f"{place}{jobs.path}")
            is_all_answered = asyncio.run(self._serve(pool, sockets, jobs))
        if self.failure is not None:
            raise self.failure
        return is_all_answered

    def stop(self) -> None:
        """Tell it to stop: what was asked is answered first. From any thread."""
        self._stop.set()

    async def _serve(self, pool: PagePool, sockets: list[socket.socket], jobs: JobServer) -> bool:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                loop.add_signal_handler(number, self._on_signal, number)
        settings = self._settings
        longest = settings.serve.max_answer
        preparer = ChatPreparer(self.engine.info, pool, settings.pages, allow_urls=settings.allow_urls, longest=longest)
        completions = ChatCompletions(self.engine, preparer, self.admission, self.metrics, self.engine.info.name)
        app = make_app(self.engine, completions, self.admission, self.metrics, settings.api_key)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
        )
        server = _Uvicorn(config)
        serving = asyncio.ensure_future(server.serve(sockets)) if sockets else None
        try:
            while not self._stop.is_set() and not (serving and serving.done()):
                await asyncio.sleep(_POLL_SECONDS)
            self.admission.is_stopping = True
            if held := self.admission.held + jobs.active:
                self._on_note(f"stopping: {held:,} clients wait for answers; told to stop again it ends at once")
            is_all_answered = await self._drain(jobs)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(completions.stop(), _SECONDS_TO_REFUSE)
        finally:
            server.should_exit = True
            if serving is not None:
                await serving
            completions.close()
            preparer.close()
        return is_all_answered

    async def _drain(self, jobs: JobServer) -> bool:
        """Wait until what was asked is answered, for a limited time; says whether it was."""
        jobs.stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.serve.stop_timeout
        while self.failure is None and (self.admission.held or jobs.active) and loop.time() < deadline:
            if self._is_told:  # twice: at once
                break
            await asyncio.sleep(_POLL_SECONDS)
        return not (self.admission.held or jobs.active)

    def _on_signal(self, number: signal.Signals) -> None:
        self.signal = number
        self._is_told = self._stop.is_set()
        self._stop.set()

    def _idle(self) -> None:
        if self._settings.serve.exit_when_idle:
            self._stop.set()
        else:
            self._on_note("nothing was asked for a while: the weights are let go until the next question")

    def _failed(self, error: ModelError) -> None:
        self.failure = error
        self._stop.set()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the server that it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """Yield a socket that listens where the settings say; raises UsageError where that can't be."""
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            flags = f"--host {settings.host} --port {settings.port}"
            way_out = "; --port 0 takes a free port" if error.errno in _PORT_ERRORS else ""
            raise UsageError(f"{flags}: {error.strerror or error}{way_out}") from error
        listener.setblocking(False)
        yield listener


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
