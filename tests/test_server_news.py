"""News of tokens: told from the engine's thread, read by streams of an event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from idefics_cli.engine import DeferredEngine
from idefics_cli.records import Answer, GeneratedTokens, Request
from idefics_cli.server.news import News, NewsDesk
from tests.servers import ServedEngine, asking, events, image, running


def tokens(count: int) -> GeneratedTokens:
    return GeneratedTokens(tuple(range(count)), (-0.5,) * count, lambda ids: "w" * len(ids))


def tell(streams: Sequence[News], told: Iterable[GeneratedTokens]) -> None:
    for one in told:
        for news in streams:
            news.tell(one)


def tell_in_thread(streams: Sequence[News], *told: GeneratedTokens) -> None:
    """Tell them from another thread, while the event loop stands still."""
    thread = threading.Thread(target=tell, args=(streams, told))
    thread.start()
    thread.join()


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what other threads called."""

    calls = 0

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
        self.calls += 1
        return super().call_soon_threadsafe(*arguments, **options)


def test_news_of_a_step_wakes_the_loop_once_and_each_stream_once() -> None:
    async def streams() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        desk = NewsDesk()
        all_news = [desk.news() for _ in range(64)]
        for count in (1, 2, 3):
            before = loop.calls
            tell_in_thread(all_news, tokens(count))
            assert loop.calls == before + 1
            await asyncio.gather(*(asyncio.wait_for(news.wait(), 60) for news in all_news))
            assert {len(news.latest.ids) for news in all_news if news.latest} == {count}

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(streams())


def test_what_comes_while_a_stream_is_busy_is_merged_and_the_next_is_not_missed() -> None:
    async def stream() -> None:
        news, loop = NewsDesk().news(), asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        for first in (1, 10, 20):
            before = loop.calls
            for count in range(first, first + 5):
                tell_in_thread([news], tokens(count))
                await asyncio.sleep(0)
            assert loop.calls == before + 1
            await asyncio.wait_for(news.wait(), 60)
            assert news.latest is not None
            assert len(news.latest.ids) == first + 4
            waiting = asyncio.ensure_future(news.wait())
            await asyncio.sleep(0.01)
            assert not waiting.done()  # it has read everything
            news.wake()
            await waiting

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(stream())


def test_no_news_is_lost_however_the_threads_run() -> None:
    async def read() -> None:
        news = NewsDesk().news()
        teller = threading.Thread(target=tell, args=([news], map(tokens, range(1, 2001))))
        teller.start()
        while news.latest is None or len(news.latest.ids) < 2000:
            await asyncio.wait_for(news.wait(), 60)
        teller.join()

    asyncio.run(read())


def test_news_after_the_end_of_the_loop_is_no_error() -> None:
    async def news() -> Callable[[GeneratedTokens], None]:
        return NewsDesk().news().tell

    asyncio.run(news())(tokens(1))


class Growing(ServedEngine):
    """Tells ten tokens before each answer, one after another or all while a stream can't read."""

    def submit(self, request: Request) -> Future[Answer]:
        self.requests.append(request)
        future: Future[Answer] = Future()
        assert request.on_tokens is not None
        for count in range(1, 11):
            request.on_tokens(tokens(count))
        future.set_result(Answer("w" * 12, 0.5, -0.5, 10, 12, tokens=tokens(12)))
        return future


def test_chunks_of_merged_news_have_every_token_once() -> None:
    engine = Growing()
    with running(open_with=lambda _: DeferredEngine(engine.info, lambda _: engine)) as (_, client):
        body = asking("?", image("notice.bmp"), stream=True, logprobs=True, stream_options={"include_usage": True})
        reply = client.post("/v1/chat/completions", json=body)
        first, *texts, last, usage = events(reply.text)
    assert reply.text.startswith(f"data: {json.dumps(first)}\n\n")  # fields and spaces as ever
    assert list(first) == ["id", "object", "created", "model", "choices", "usage"]
    assert list(first["choices"][0]) == ["index", "delta", "logprobs", "finish_reason"]
    assert "".join(one["choices"][0]["delta"]["content"] for one in texts) == "w" * 12
    told: Sequence[Any] = [token for one in texts for token in one["choices"][0]["logprobs"]["content"]]
    assert [token["token"] for token in told] == ["w"] * 12
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["usage"]["completion_tokens"] == 12
