"""What is sent from the engine's process: one message for all that a step did, and what the engine is doing."""

from __future__ import annotations

import time
from concurrent.futures import Future

from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineStats
from idefics_cli.engine_process.child import Reporter, Requests
from idefics_cli.engine_process.messages import Answered, Cancel, FromEngine, News, SentPage, Submit
from idefics_cli.records import Answer, GeneratedTokens, Request
from tests.fakes import FakeEngine
from tests.servers import until
from tests.test_engine_process import asking


class SteppedEngine(FakeEngine):
    """Does what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = EngineStats()
        self.requests: list[Request] = []
        self.futures: list[Future[Answer]] = []

    def submit(self, request: Request) -> Future[Answer]:
        self.requests.append(request)
        self.futures.append(Future())
        return self.futures[-1]

    def step(self, count: int) -> None:
        """Tell each request that it has so many tokens."""
        self.steps += 1
        for request in self.requests:
            assert request.on_tokens is not None
            request.on_tokens(GeneratedTokens(tuple(range(count)), (-0.5,) * count, str))


class Watched:
    """An engine whose reports are kept."""

    def __init__(self) -> None:
        self.engine = SteppedEngine()
        self.sent: list[FromEngine] = []
        self.reporter = Reporter(self.sent.append)
        deferred = DeferredEngine(self.engine.info, lambda _: self.engine)
        deferred.load()
        self.requests = Requests(deferred, None, self.reporter.put)
        self.reporter.watch(deferred, self.requests)

    @property
    def news(self) -> list[News]:
        return [one for one in self.sent if isinstance(one, News)]

    def until_sent(self, stats: EngineStats) -> None:
        until(lambda: bool(self.news) and self.news[-1].stats == stats)

    def submit(self, number: int) -> None:
        pages = tuple(map(SentPage, asking("q").pages))
        self.requests.take(Submit(number, Request("q", (), ("p",)), pages, is_watched=True))


def test_all_tokens_of_a_step_are_one_message_and_each_is_sent_once() -> None:
    watched = Watched()
    for number in range(50):
        watched.submit(number)
    until(lambda: bool(watched.news))
    time.sleep(0.05)
    for count in (1, 2, 5):
        watched.sent.clear()
        watched.engine.step(count)
        until(lambda: sum(len(news.grown) for news in watched.news) == 50)
        assert len(watched.news) == 1
        assert watched.news[0].steps == watched.engine.steps
        start = {1: 0, 2: 1, 5: 2}[count]
        ids = tuple(range(start, count))
        assert watched.news[0].grown[7] == (7, start, ids, (-0.5,) * len(ids), ())
    watched.reporter.close()


def test_what_the_engine_is_doing_is_sent_while_it_tells_nothing_and_not_when_it_rests() -> None:
    watched = Watched()
    watched.submit(0)
    for running in (1, 2):
        doing = watched.engine.stats = EngineStats(running)
        watched.until_sent(doing)
    watched.engine.futures[0].set_result(Answer("a"))
    watched.engine.stats = EngineStats()
    watched.until_sent(EngineStats())
    assert [one for news in watched.news for one in news.answered] == [Answered(0, Answer("a"))]
    time.sleep(0.3)
    count = len(watched.sent)
    time.sleep(0.5)
    assert len(watched.sent) == count
    watched.reporter.close()


def test_an_answer_that_nobody_waits_for_is_not_sent() -> None:
    watched = Watched()
    watched.submit(0)
    watched.requests.take(Cancel(7))  # answered meanwhile
    watched.requests.take(Cancel(0))
    assert watched.engine.futures[0].cancelled()
    assert watched.requests.is_empty
    watched.reporter.close()
    assert not any(news.answered or news.failed for news in watched.news)


def test_what_happened_is_sent_before_it_ends() -> None:
    watched = Watched()
    watched.submit(0)
    watched.engine.futures[0].set_result(Answer("a"))
    watched.reporter.close()
    assert any(news.answered for news in watched.news)
