"""The engine that asks a server: requests go out as they come, as many at once as the server takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import threading
import time
from concurrent.futures import Future

from idefics_cli.config import EndpointSettings
from idefics_cli.endpoint.address import Address
from idefics_cli.endpoint.asking import Asked, Asking
from idefics_cli.endpoint.client import Client
from idefics_cli.endpoint.concurrency import AdaptiveLimit, Outcome
from idefics_cli.endpoint.errors import RefusedError, RequestError, TransientError
from idefics_cli.endpoint.gate import Gate
from idefics_cli.endpoint.retry import Health, RetryBudget, backoff
from idefics_cli.engine.base import EngineInfo
from idefics_cli.errors import Failure, FailureKind, ModelError
from idefics_cli.records import Answer, Generation, Request

_log = logging.getLogger(__name__)
_CLOSING_SECONDS = 10.0
# a prompt that is too long, as vLLM, TGI and llama.cpp say it; only the form's own code has a name of its own
_TOO_LONG = re.compile(
    r"context (length|size|window)|maximum model length|inputs` (tokens \+|must have less than)", re.IGNORECASE
)
_TOLD_AFTER = 5.0  # seconds without a request that passes after which the user is told


class EndpointEngine:
    """Answers requests through a server of the OpenAI chat form; see `Engine`."""

    def __init__(
        self, info: EngineInfo, address: Address, settings: EndpointSettings, generation: Generation, prompt: str
    ) -> None:
        """Take where and how to ask; nothing is sent yet.

        Args:
            info: of the engine; its name is the model's on the server.
            address: of the server.
            settings: time limits, and how many requests there may be at once.
            generation: how answers are generated.
            prompt: the template of questions.

        """
        self.info = info
        self._requests = _Requests(info, address, settings, Asking(info.name, generation, prompt, address.redacted))
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def start(self) -> None:
        """See `Engine`; there is nothing to load."""

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`."""
        with self._lock:
            if self._is_closed:
                refused: Future[Answer] = Future()
                refused.set_exception(ModelError("the engine has been closed"))
                return refused
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="endpoint", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._requests.answer(request), self._loop)

    def close(self) -> None:
        """See `Engine`; requests that are under way are dropped."""
        with self._lock:
            self._is_closed = True
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._requests.close(), loop)
        with contextlib.suppress(Exception):  # what a broken connection says when it is closed
            closing.result(_CLOSING_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSING_SECONDS)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


class _Requests:
    """The requests of an engine, in its event loop."""

    def __init__(self, info: EngineInfo, address: Address, settings: EndpointSettings, asking: Asking) -> None:
        self._address, self._settings, self._asking = address, settings, asking
        self._capacity = info.capacity
        self._client: Client | None = None
        self._gate = Gate(AdaptiveLimit(settings.most_requests))
        self._health = Health(settings.patience_seconds)
        self._tasks: set[asyncio.Task[object]] = set()
        self._broken: ModelError | None = None
        self._is_outage_told = False

    async def close(self) -> None:
        """Withdraw all requests, and close the connections."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def answer(self, request: Request) -> Answer:
        """Answer a request, be it by a failure.

        Raises:
            ModelError: the server is gone, or refuses whatever is asked.

        """
        if self._client is None:
            most = self._settings.most_requests
            self._client = Client(self._address, self._settings.timeout_seconds, most)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            asked = await self._asking.prepared(request)
            del request  # and its pixels
            return await self._answer(asked)
        except asyncio.CancelledError:
            if self._broken is None:
                raise
            raise ModelError(str(self._broken)) from None
        finally:
            self._tasks.discard(task)

    async def _answer(self, asked: Asked) -> Answer:
        budget, tries, last_try = RetryBudget(), 0, time.monotonic()
        while True:
            if self._broken is not None:
                raise ModelError(str(self._broken))
            try:
                return await self._try(asked)
            except RefusedError as error:
                if error.concerns_all and (error.status == 401 or not self._asking.has_answered):
                    raise self._end(f"{self._address.base}: {error}") from error
                self._health.passed(time.monotonic())
                return Answer(failure=_failure(error))
            except TransientError as error:
                tries += 1
                self._check_health(error)
                counts = self._health.has_passed_since(last_try) or (
                    not error.is_of_server and len(self._tasks) < self._capacity
                )
                if counts and budget.spend(error.cost):
                    return Answer(failure=_failure(error, tries))
                last_try = time.monotonic()
                delay = backoff(tries, self._settings.retry_delay, random.random())  # noqa: S311 - no secret
                await asyncio.sleep(max(delay, error.retry_after or 0.0))

    async def _try(self, asked: Asked) -> Answer:
        """Send a request once; raises TransientError, RefusedError and ModelError."""
        assert self._client is not None
        ticket = await self._gate.enter()
        outcome, pause = Outcome.UNKNOWN, 0.0
        try:
            answer = await self._asking.answer(self._client, asked)
            outcome = Outcome.PASSED
        except RefusedError:
            outcome = Outcome.PASSED
            raise
        except TransientError as error:
            outcome, pause = error.outcome, error.retry_after or 0.0
            if error.is_of_server and self._gate.limit.is_outage:  # one probe every few seconds
                pause = max(pause, backoff(self._gate.limit.failures, self._settings.retry_delay, random.random()))  # noqa: S311
            raise
        except ModelError as error:
            self._end(str(error))
            raise
        finally:
            self._gate.leave(ticket, outcome, pause=pause)
        self._health.passed(time.monotonic())
        if self._is_outage_told:
            self._is_outage_told = False
            _log.warning("%s answers again", self._address.base)
        return answer

    def _check_health(self, error: TransientError) -> None:
        """Take note of a failure; raises ModelError when the server is gone."""
        now = time.monotonic()
        _log.info("%s: %s", self._address.base, error)
        if self._health.failed(now):
            seconds = self._settings.patience_seconds
            raise self._end(f"{self._address.base}: no request has passed for {seconds:g} s; the last: {error}")
        if not self._is_outage_told and self._health.down_for(now) >= _TOLD_AFTER:
            self._is_outage_told = True
            left = self._settings.patience_seconds - self._health.down_for(now)
            _log.warning("%s: no request passes (%s); trying for %.0f s more", self._address.base, error, left)

    def _end(self, words: str) -> ModelError:
        """Withdraw all other requests: none can pass."""
        if self._broken is None:
            self._broken = ModelError(words)
            for task in self._tasks - {asyncio.current_task()}:
                task.cancel()
        return self._broken


def _failure(error: RequestError, tries: int = 1) -> Failure:
    """Return the failure of a row; our own server says in `code` which kind it is."""
    kind, words = FailureKind.ENDPOINT, error.words
    is_too_long = error.status in (400, 422) and _TOO_LONG.search(words)
    if error.status == 413 or error.code == "context_length_exceeded" or is_too_long:
        kind = FailureKind.TOO_LARGE
    with contextlib.suppress(ValueError):
        kind = FailureKind(error.code.replace("_", "-"))
    return Failure(kind, f"{words} ({tries} tries)" if tries > 1 else words)
