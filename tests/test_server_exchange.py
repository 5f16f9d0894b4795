"""Bodies of requests: in turn where they are large, and never at the mercy of a slow client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from idefics_cli.openai_api.errors import ApiError
from idefics_cli.server.admission import Admission
from idefics_cli.server.exchange import BodyReader, ClientLeftError

PART = b"x" * 50_000
PARTS = 8
SCOPE: dict[str, object] = {"headers": [(b"content-length", str(PARTS * len(PART)).encode())]}


class Client:
    """Sends parts of a body, after so many seconds each."""

    def __init__(self, seconds: Iterable[float] = (0.0,) * PARTS) -> None:
        self.sent = 0
        self._seconds = list(seconds)

    async def receive(self) -> dict[str, object]:
        await asyncio.sleep(self._seconds[self.sent])
        self.sent += 1
        return {"type": "http.request", "body": PART, "more_body": self.sent < len(self._seconds)}


async def read(reader: BodyReader, client: Client, scope: dict[str, object] = SCOPE) -> int:
    with Admission(1, 1 << 20).request() as room:
        return len(await reader.read(scope, client.receive, room))


def test_the_first_of_many_bodies_is_there_long_before_the_last() -> None:
    async def sent_when_the_first_was_read() -> int:
        reader, clients = BodyReader(), [Client() for _ in range(20)]
        reading = [asyncio.ensure_future(read(reader, client)) for client in clients]
        await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        sent = sum(client.sent for client in clients)
        assert await asyncio.gather(*reading) == [PARTS * len(PART)] * len(clients)
        return sent

    # The pieces that earn a turn, and three bodies; side by side it would be all of 20.
    assert asyncio.run(sent_when_the_first_was_read()) <= 20 * 2 + 3 * PARTS


@pytest.mark.parametrize("length", [SCOPE, {"headers": []}])
def test_who_sends_slowly_holds_nobody_up(length: dict[str, object]) -> None:
    async def run() -> None:
        reader = BodyReader(seconds=60)
        slow = [Client([0.0, 3600.0]) for _ in range(5)]
        waiting = [asyncio.ensure_future(read(reader, client, length)) for client in slow]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            assert await read(reader, Client([0.0, 0.1, 0.0, 0.1]), length) == 4 * len(PART)
        assert not any(one.done() for one in waiting)
        for one in waiting:
            one.cancel()

    asyncio.run(run())


def test_who_sends_a_byte_now_and_then_holds_nobody_up() -> None:
    async def run() -> None:
        reader, ended = BodyReader(), asyncio.Event()

        async def trickle() -> dict[str, object]:
            await asyncio.sleep(0.001)
            return {"type": "http.request", "body": b"x", "more_body": not ended.is_set()}

        async def read_trickling(client: Client) -> None:
            async def receive() -> dict[str, object]:
                return await (client.receive() if client.sent < 3 else trickle())

            with Admission(1, 1 << 20).request() as room:
                await reader.read(SCOPE, receive, room)

        # Some from the start, others once they have a turn.
        slow = [Client([0.0, 3600.0]) for _ in range(10)] + [Client() for _ in range(10)]
        for client in slow[:10]:
            client.sent = 3
        waiting = [asyncio.ensure_future(read_trickling(client)) for client in slow]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            assert await read(reader, Client()) == PARTS * len(PART)
        assert not any(one.done() for one in waiting)
        ended.set()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_small_body_waits_for_no_turn() -> None:
    async def run() -> int:
        reader = BodyReader()
        large = [asyncio.ensure_future(read(reader, Client())) for _ in range(4)]
        small = Client([0.0])
        found = await read(reader, small, {"headers": [(b"content-length", b"50000")]})
        assert not any(one.done() for one in large)
        await asyncio.gather(*large)
        return found

    assert asyncio.run(run()) == len(PART)


def test_a_body_that_grows_too_large_and_a_client_that_leaves_end_the_turn() -> None:
    async def leaves() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def run() -> None:
        reader = BodyReader()
        for _ in range(5):
            with pytest.raises(ApiError) as caught:
                await read(reader, Client([0.0] * 40), {"headers": []})
            assert caught.value.status == 413
            with pytest.raises(ClientLeftError), Admission(1, 100).request() as room:
                await reader.read({"headers": []}, leaves, room)
        assert await read(reader, Client()) == PARTS * len(PART)

    asyncio.run(run())


def test_a_client_that_sends_nothing_is_refused_in_time() -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(read(BodyReader(seconds=0.05), Client([3600.0])))
    assert caught.value.status == 408
