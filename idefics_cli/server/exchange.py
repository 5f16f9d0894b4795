"""One exchange with an HTTP client: a body read within its limits, a response or a refusal sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from idefics_cli.openai_api.errors import ApiError
from idefics_cli.server.admission import BodyRoom

_BODY_SECONDS = 30.0  # without a byte of the body
_DRAIN_SECONDS = 10.0  # a client reads a refusal only once it has sent what it wanted to


class ClientLeftError(Exception):
    """The client has closed its connection."""


@dataclass(slots=True)
class Reply:
    """What was sent of a response."""

    status: int = 0
    """0 while nothing was."""
    is_body_read: bool = False


async def read_body(scope: Scope, receive: Receive, room: BodyRoom, *, seconds: float = _BODY_SECONDS) -> bytearray:
    """Read a body; one that is too large is refused by its length before it is read, else as it grows."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        room.grow(int(length))
    body = bytearray()  # returned as it is: a copy of a page takes as long as to read it
    while True:
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError as error:
            raise ApiError(408, f"nothing of the body came for {seconds:g} seconds", code="body_too_slow") from error
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        room.grow(len(body))
        if not message.get("more_body", False):
            return body


async def client_left(receive: Receive) -> None:
    """Wait until the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drained(receive: Receive) -> None:
    """Read and drop what a refused client still sends, for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send, reply: Reply) -> None:
    """Answer a request with an error, unless its answer has begun.

    What the client still sends is read and dropped for a while: it reads the refusal only behind that.
    """
    if reply.status:
        return
    headers = [(b"retry-after", str(error.retry_after).encode())] if error.retry_after is not None else []
    is_waiting = reply.is_body_read or b"expect" in dict(scope["headers"])
    await send_json(send, error.status, error.body, headers, None if is_waiting else lambda: _drained(receive))


async def send_json(
    send: Send,
    status: int,
    body: object,
    headers: Sequence[tuple[bytes, bytes]] = (),
    drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Send a whole response; `drain` waits between its last byte and its end."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": data, "more_body": drain is not None})
    if drain is not None:
        await drain()
        await send({"type": "http.response.body", "body": b""})
