"""The engine's process as its parent sees it: an engine like any other."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from idefics_cli.child_process import SECONDS_TO_STOP, ChildProcess
from idefics_cli.config import ModelSettings
from idefics_cli.documents.shared_memory import SharedMemory
from idefics_cli.engine import DeferredEngine, open_engine, open_model
from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.engine_process.child import main
from idefics_cli.engine_process.messages import (
    Cancel,
    EngineSpec,
    FromEngine,
    Grown,
    Loaded,
    News,
    NotLoaded,
    Submit,
    ToEngine,
)
from idefics_cli.engine_process.pages import Lender
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer, GeneratedTokens, Request

_POLL_SECONDS = 0.05
_CLOSED = "the engine has been closed"
Decode = Callable[[Sequence[int]], str]
OnLost = Callable[[ModelError], None]


def open_in_process(
    settings: ModelSettings, *, memory: SharedMemory | None = None, on_lost: OnLost = lambda _: None
) -> DeferredEngine:
    """Open the engine for a checkpoint, which a process of its own is started for when its weights are loaded.

    Args:
        settings: of the model.
        memory: that page processes write into.
        on_lost: told when the process has ended by itself after it had loaded the weights, from a thread.

    Raises:
        ModelError, UsageError: as `open_engine`.

    """
    model = open_model(settings)
    return engine_in_process(open_engine, settings, model.info, model.decode, memory=memory, on_lost=on_lost)


def engine_in_process(
    open_there: Callable[[ModelSettings], DeferredEngine],
    settings: ModelSettings,
    info: EngineInfo,
    decode: Decode,
    *,
    memory: SharedMemory | None = None,
    on_lost: OnLost = lambda _: None,
) -> DeferredEngine:
    """Return the engine that a function of a module opens, in a process of its own; see `open_in_process`."""

    def load(is_closed: Callable[[], bool]) -> EngineProcess:
        try:
            engine = EngineProcess(open_there, settings, info, decode, memory, on_lost)
        except OSError as error:
            raise ModelError(f"no process can be started for the engine: {error.strerror or error}") from error
        engine.wait_until_loaded(is_closed)
        return engine

    return DeferredEngine(info, load)


@dataclasses.dataclass(slots=True)
class _Asked:
    """A request that is not answered."""

    future: Future[Answer]
    on_tokens: Callable[[GeneratedTokens], None] | None
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class EngineProcess:
    """An engine whose weights are in another process, or on their way there."""

    def __init__(
        self,
        open_there: Callable[[ModelSettings], DeferredEngine],
        settings: ModelSettings,
        info: EngineInfo,
        decode: Decode,
        memory: SharedMemory | None,
        on_lost: OnLost,
    ) -> None:
        """Start the process; see `engine_in_process`.

        Raises:
            OSError: no room for another process.

        """
        self.info = info
        self.steps = 0
        self.stats = EngineStats()
        self._decode, self._on_lost = decode, on_lost
        self._lender = Lender(memory)
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._lock = threading.Lock()
        self._error: ModelError | None = None
        self._is_closed = False
        self._loading: Future[None] = Future()
        self._outgoing: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        descriptors = () if memory is None else (memory.descriptor,)
        self._memory = memory  # its descriptor is open as long as this lives
        self._child = ChildProcess(main, {}, descriptors)
        level = logging.getLogger("idefics_cli").getEffectiveLevel()
        spec = EngineSpec(settings, open_there, memory.descriptor if memory else None, level)
        # Nobody who asks or cancels waits for the pipe.
        self._sender = threading.Thread(target=self._send, args=(spec,), name="to engine", daemon=True)
        self._receiver = threading.Thread(target=self._receive, name="from engine", daemon=True)
        self._sender.start()
        self._receiver.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def wait_until_loaded(self, is_closed: Callable[[], bool]) -> None:
        """Wait for the weights; the process is ended when they are not wanted any more, or can't be loaded.

        Raises:
            ModelError: they can't be loaded, or `is_closed` says so.

        """
        try:
            while not is_closed():
                try:
                    return self._loading.result(_POLL_SECONDS)
                except TimeoutError:
                    continue
            raise ModelError(_CLOSED)
        except BaseException:
            self._is_closed = True
            self._child.kill()
            self._receiver.join(SECONDS_TO_STOP)
            raise

    def start(self) -> None:
        """See `Engine`: it is loaded already."""

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`; after the process has ended, every future raises ModelError."""
        future: Future[Answer] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._is_closed:
                raise ModelError(_CLOSED)
            if self._error is not None:
                future.set_exception(self._error)
                return future
            self._asked[number] = _Asked(future, request.on_tokens)
        pages = tuple(map(self._lender.lend, request.pages, request.page_ids))
        is_watched = request.on_tokens is not None
        request = dataclasses.replace(request, pages=(), on_tokens=None)
        self._outgoing.put(Submit(number, request, pages, is_watched))
        future.add_done_callback(partial(self._withdraw, number))
        return future

    def close(self) -> None:
        """See `Engine`; waits for the step that is being done, but not for long."""
        with self._lock:
            self._is_closed = True
        self._child.finish()
        if threading.current_thread() is self._receiver:  # in a callback: what follows is done when it returns
            return
        self._receiver.join(SECONDS_TO_STOP)
        if self._receiver.is_alive():
            self._child.kill()
            self._receiver.join(SECONDS_TO_STOP)

    def _withdraw(self, number: int, future: Future[Answer]) -> None:
        if future.cancelled():
            with self._lock:
                is_known = self._asked.pop(number, None) is not None
            if is_known:
                self._outgoing.put(Cancel(number))

    def _send(self, spec: EngineSpec) -> None:
        """Send what is asked; all that has come since the last message is one."""
        try:
            self._child.connection.send(spec)
            while True:
                messages = [self._outgoing.get()]
                while not self._outgoing.empty():
                    messages.append(self._outgoing.get())
                if None in messages:
                    return
                self._child.connection.send(messages)
                del messages
        except OSError:
            return  # it has gone, which the other thread sees
        except BaseException:  # nobody may wait for ever
            self._child.kill()
            raise

    def _receive(self) -> None:
        """Take what comes until the process ends, and end everything then."""
        error: BaseException | None = None
        try:
            while True:
                self._take(self._child.connection.recv())
        except (EOFError, OSError):
            pass
        except BaseException as cause:  # nobody may wait for ever
            error = cause
            self._child.kill()
        self._outgoing.put(None)
        self._child.finish()
        self._sender.join()
        ended = self._child.end(SECONDS_TO_STOP)
        self._fail(f"{ended}{_HINT if ended == _KILLED else ''}" if error is None else f"failed: {error!r}")

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Loaded):
            if message.settings == self.info.settings:
                self._loading.set_result(None)
                return
            words = "its files have changed while they were loaded; start again"
            self._loading.set_exception(ModelError(f"{self.info.name}: {words}"))
        elif isinstance(message, NotLoaded):
            error = RuntimeError(message.error) if isinstance(message.error, str) else message.error
            self._loading.set_exception(error)
        else:
            self._take_news(message)

    def _take_news(self, news: News) -> None:
        self.stats, self.steps = news.stats, news.steps
        for loan in news.returned:
            self._lender.take_back(loan)
        for logged in news.logged:
            logging.getLogger(logged.logger).log(logged.level, "%s", logged.words)
        for grown in news.grown:
            self._tell(grown)
        for number, answer in news.answered:
            if (future := self._answered(number)) is not None:
                if answer.tokens is not None:
                    tokens = dataclasses.replace(answer.tokens, decode=self._decode)
                    answer = dataclasses.replace(answer, tokens=tokens)
                future.set_result(answer)
        for number, error in news.failed:
            if (future := self._answered(number)) is not None:
                future.set_exception(error)

    def _tell(self, grown: Grown) -> None:
        number, start, ids, logprobs, stop = grown
        asked = self._asked.get(number)
        if asked is not None and asked.on_tokens is not None:
            asked.ids, asked.logprobs = asked.ids[:start] + ids, asked.logprobs[:start] + logprobs
            asked.on_tokens(GeneratedTokens(asked.ids, asked.logprobs, self._decode, stop))

    def _answered(self, number: int) -> Future[Answer] | None:
        """Return the future of a request that is done with, None where nobody waits for it."""
        with self._lock:
            asked = self._asked.pop(number, None)
        return asked.future if asked is not None and asked.future.set_running_or_notify_cancel() else None

    def _fail(self, how: str) -> None:
        """End every future; the process is gone."""
        with self._lock:
            is_lost = not self._is_closed
            self._error = error = ModelError(f"the engine's process has ended: {how}" if is_lost else _CLOSED)
            numbers = list(self._asked)
        self._lender.close()
        for number in numbers:
            if (future := self._answered(number)) is not None:
                future.set_exception(error)
        if not self._loading.done():
            self._loading.set_exception(error)
        elif is_lost and self._loading.exception() is None:
            self._on_lost(error)


_KILLED = "killed by SIGKILL"
_HINT = ", as the system does where memory is short"
