"""One exchange with an HTTP client: a body read within its limits, a response or a refusal sent."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from idefics_cli.openai_api.errors import ApiError
from idefics_cli.server.admission import STOPPING, BodyRoom

_BODY_SECONDS = 30.0  # without a byte of the body
_TURNS = 2  # bodies that are read at once
_PIECE = 1 << 16  # bytes that earn a body a turn
_PIECE_SECONDS = 0.02  # without as many more: the turn goes to another
_DRAIN_SECONDS = 10.0  # a client reads a refusal only once it has sent what it wanted to
_LAST_DRAIN_SECONDS = 0.5  # of a server that stops


class ClientLeftError(Exception):
    """The client has closed its connection."""


@dataclass(slots=True)
class Reply:
    """What was sent of a response."""

    status: int = 0
    """0 while nothing was."""
    is_body_read: bool = False


class BodyReader:
    """Reads bodies, large ones in turn.

    Clients often send at the same time: those that wait for answers of one batch. Read side by side their bodies would
    all be there only when the last one is, and the engine have nothing to do until then. Who sends slowly has no turn:
    a body has one once a piece of it came, and until the next piece is late.
    """

    def __init__(self, *, seconds: float = _BODY_SECONDS) -> None:
        """Take how long a client may send nothing."""
        self._seconds, self._turns = seconds, asyncio.Semaphore(_TURNS)

    async def read(self, scope: Scope, receive: Receive, room: BodyRoom) -> bytearray:
        """Read a body; one that is too large is refused by its length before it is read, else as it grows.

        Raises:
            ApiError: it is too large (413), or nothing of it came for too long (408).
            ClientLeftError: the client has gone.

        """
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit():
            room.grow(int(length))
        body = _Body(receive, room)
        more = True
        while more:
            more = await self._read_slowly(body) and await self._read_in_turn(body)
        return body.whole

    async def _read_slowly(self, body: _Body) -> bool:
        """Read a piece however slowly it comes; says whether more will come."""
        enough = body.size + _PIECE
        while body.size < enough:
            try:
                async with asyncio.timeout(self._seconds):
                    if not await body.read_more():
                        return False
            except TimeoutError as error:
                words = f"nothing of the body came for {self._seconds:g} seconds"
                raise ApiError(408, words, code="body_too_slow") from error
        return True

    async def _read_in_turn(self, body: _Body) -> bool:
        """Read pieces that come fast; says whether more will come."""
        now = asyncio.get_running_loop().time
        async with self._turns:
            enough = body.size + _PIECE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PIECE_SECONDS) as limit:
                    while await body.read_more():
                        if body.size >= enough:  # a byte now and then keeps no turn
                            enough = body.size + _PIECE
                            limit.reschedule(now() + _PIECE_SECONDS)
                return False
        return True


class _Body:
    """A body on its way."""

    def __init__(self, receive: Receive, room: BodyRoom) -> None:
        self._receive, self._room = receive, room
        self.whole = bytearray()  # used as it is: a copy of a page takes as long as to read it

    @property
    def size(self) -> int:
        """Bytes that came."""
        return len(self.whole)

    async def read_more(self) -> bool:
        """Read what comes next; says whether more will come."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self.whole += message.get("body", b"")
        self._room.grow(self.size)
        return bool(message.get("more_body", False))


async def client_left(receive: Receive) -> None:
    """Wait until the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drained(receive: Receive, seconds: float) -> None:
    """Read and drop what a refused client still sends, for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
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
    seconds = _LAST_DRAIN_SECONDS if error.code == STOPPING else _DRAIN_SECONDS
    drain = None if is_waiting else functools.partial(_drained, receive, seconds)
    await send_json(send, error.status, error.body, headers, drain)


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
