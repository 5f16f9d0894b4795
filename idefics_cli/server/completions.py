"""`POST /v1/chat/completions`: a body read within its limits, the engine asked, the answer sent whole or as a stream.

A client that goes away is noticed at once, whatever its request waits for, and its request withdrawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from idefics_cli.engine.base import Engine
from idefics_cli.errors import ModelError
from idefics_cli.openai_api.errors import ApiError, error_of
from idefics_cli.openai_api.request import ChatRequest
from idefics_cli.openai_api.response import Completion, TextStream, TokenStream, event
from idefics_cli.records import Answer, Request
from idefics_cli.server.admission import STOPPING, Admission, BodyRoom
from idefics_cli.server.chat import ChatPreparer
from idefics_cli.server.exchange import BodyReader, ClientLeftError, Reply, client_left, refuse, send_json
from idefics_cli.server.metrics import Metrics
from idefics_cli.server.news import News, NewsDesk

_RETRY_AFTER = 5  # seconds
_LEFT = 499  # what proxies call a client that has gone
_PREPARED_AHEAD = 16  # requests whose pages are being prepared or wait for the engine
_Result = TypeVar("_Result")


class ChatCompletions:
    """The endpoint, as an ASGI application."""

    def __init__(
        self, engine: Engine, preparer: ChatPreparer, admission: Admission, metrics: Metrics, model_name: str
    ) -> None:
        """Take what answers, and within which limits."""
        self._engine, self._preparer, self._admission = engine, preparer, admission
        self._metrics, self._model_name = metrics, model_name
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk, self._bodies = NewsDesk(), BodyReader()
        self._preparing = asyncio.Semaphore(_PREPARED_AHEAD)
        self._engine_room = asyncio.Semaphore(engine.info.capacity)
        self._threads = ThreadPoolExecutor(2 * _PREPARED_AHEAD, "request")

    async def stop(self) -> None:
        """Refuse what is not answered."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        while self._admission.held:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started = time.monotonic()
        reply = Reply()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
            await send(message)

        try:
            with self._admission.request() as room, self._metrics.held.track_inprogress():
                await self._answered(scope, receive, sending, reply, room, started)
        except ApiError as error:
            await refuse(error, scope, receive, sending, reply)
        except ClientLeftError:
            reply.status = _LEFT
        except ModelError as error:
            refusal = ApiError(503, str(error), code="model_unavailable", retry_after=_RETRY_AFTER)
            await refuse(refusal, scope, receive, sending, reply)
        finally:
            self._metrics.requests.labels(str(reply.status or 500)).inc()
            self._metrics.latency.observe(time.monotonic() - started)

    async def _answered(
        self, scope: Scope, receive: Receive, send: Send, reply: Reply, room: BodyRoom, started: float
    ) -> None:
        body = await self._body(scope, receive, room)
        reply.is_body_read = True
        answering = asyncio.ensure_future(self._answer(body, send, room, started))
        del body
        leaving = asyncio.ensure_future(client_left(receive))
        try:
            await asyncio.wait([answering, leaving, self._stopped], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and leaving.done():
                raise ClientLeftError
            if not answering.done():
                raise _stopped("the answer was there")
            await answering
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            # An error's frames would hold the task that holds the error, and so the body until garbage is collected.
            del answering, leaving, task

    async def _body(self, scope: Scope, receive: Receive, room: BodyRoom) -> bytearray:
        """Read a body, unless the server stops first."""
        reading: asyncio.Future[bytearray] = asyncio.ensure_future(self._bodies.read(scope, receive, room))
        awaited: list[asyncio.Future[Any]] = [reading, self._stopped]
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise _stopped("the question was there")
            return await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            del reading, awaited  # as above

    async def _answer(self, body: bytearray, send: Send, room: BodyRoom, started: float) -> None:
        with self._metrics.queued.track_inprogress():
            async with self._preparing:
                prepared = await self._in_thread(self._preparer.prepare, body)
                del body
                room.release()
                self._metrics.prepared(len(prepared.request.pages), prepared.pages_prepared, prepared.prepare_s)
                await self._engine_room.acquire()
        try:
            chat, request = prepared.chat, prepared.request
            del prepared
            completion = Completion(chat.model or self._model_name)
            if chat.stream:
                await self._stream(completion, chat, request, send, started)
            else:
                answer = await asyncio.wrap_future(await self._submit(request))
                del request
                await send_json(send, 200, completion.body(self._checked(answer), logprobs=chat.logprobs))
        finally:
            self._engine_room.release()

    async def _stream(
        self, completion: Completion, chat: ChatRequest, request: Request, send: Send, started: float
    ) -> None:
        """Send the answer as it grows; what fails before the first token is an error like any other."""
        news = self._desk.news()
        future = await self._submit(replace(request, on_tokens=news.tell))
        del request
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(lambda _: news.wake())
        try:
            await news.wait()
            if answer.done():
                self._checked(answer.result(), is_counted=False)
            self._metrics.first_token.observe(time.monotonic() - started)
            await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
            try:
                end = await self._send_chunks(completion, chat, news, answer, send)
            except (ApiError, ModelError) as error:  # too late for another status
                end = event(error.body if isinstance(error, ApiError) else ApiError(503, str(error)).body)
            await send({"type": "http.response.body", "body": end})
        finally:
            answer.cancel()

    async def _send_chunks(
        self, completion: Completion, chat: ChatRequest, news: News, answer: asyncio.Future[Answer], send: Send
    ) -> bytes:
        """Send the chunks of an answer while it grows; returns those of its end. Each `send` is a system call."""
        chunks = completion.chunks(include_usage=chat.include_usage)
        text, tokens = TextStream(), TokenStream()
        unsent = chunks.first()
        while not answer.done():
            if news.latest is not None and (added := text.added(news.latest)):
                unsent += chunks.text(added, tokens.added(news.latest) if chat.logprobs else None)
                await send({"type": "http.response.body", "body": unsent, "more_body": True})
                unsent = b""
            await news.wait()
        whole = self._checked(answer.result())
        rest = text.rest(whole)
        entries = tokens.added(whole.tokens, whole=whole.text) if chat.logprobs and whole.tokens is not None else None
        if rest or entries:
            unsent += chunks.text(rest, entries)
        return unsent + chunks.end(whole)

    def _checked(self, answer: Answer, *, is_counted: bool = True) -> Answer:
        if answer.failure is not None:
            raise error_of(answer.failure)
        if is_counted:
            self._metrics.answered(answer)
        return answer

    async def _submit(self, request: Request) -> Future[Answer]:
        """Ask the engine, in a thread since its weights may have to be loaded; withdrawn when this is cancelled."""
        submitting = self._threads.submit(self._engine.submit, request)
        try:
            return await asyncio.shield(asyncio.wrap_future(submitting))
        except asyncio.CancelledError:
            submitting.add_done_callback(_withdraw)
            raise

    async def _in_thread(self, call: Callable[[bytearray], _Result], body: bytearray) -> _Result:
        running = asyncio.get_running_loop().run_in_executor(self._threads, call, body)
        try:
            return await running
        finally:
            del running  # as above


_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def _stopped(event: str) -> ApiError:
    return ApiError(503, f"the server has stopped before {event}", code=STOPPING)


def _withdraw(submitting: Future[Future[Answer]]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
