"""Weights that are let go when nothing is asked, and come back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineInfo
from idefics_cli.errors import ModelError
from idefics_cli.records import Request
from idefics_cli.server.kept_engine import KeptEngine
from tests.servers import ServedEngine, until
from tests.small_checkpoints import small_requests


class Loads:
    """Opens engines and counts what becomes of them."""

    def __init__(self) -> None:
        self.loaded: list[ServedEngine] = []
        self.closed = 0
        self.settings = {"--model": "fake 1"}
        self.fails = 0

    def open(self) -> DeferredEngine:
        return DeferredEngine(EngineInfo("m", dict(self.settings), 8, ServedEngine().info.image_processor), self._load)

    def _load(self, _: object) -> ServedEngine:
        if self.fails:
            self.fails -= 1
            raise ModelError("no memory now")
        loads = self

        class Engine(ServedEngine):
            def close(self) -> None:
                loads.closed += 1
                super().close()

        self.loaded.append(Engine())
        return self.loaded[-1]


def request(question: str) -> Request:
    page = small_requests()[0].pages[0]
    return Request(question, (page,), ("p",))


def test_weights_go_when_nothing_is_asked_and_are_loaded_again() -> None:
    loads, idle = Loads(), threading.Semaphore(0)
    engine = KeptEngine(loads.open, keep_alive=0.05, on_idle=idle.release)
    for times in (1, 2):
        assert engine.submit(request("What?")).result(60).text.startswith("What?")
        assert idle.acquire(timeout=60)
        assert (len(loads.loaded), loads.closed, engine.is_loaded) == (times, times, False)
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        engine.submit(request("What?"))


def test_weights_stay_while_something_is_asked() -> None:
    loads, idle = Loads(), threading.Semaphore(0)
    engine = KeptEngine(loads.open, keep_alive=0.05, on_idle=idle.release)
    answer = engine.submit(request("wait"))
    assert not idle.acquire(timeout=0.5)
    assert (engine.is_loaded, engine.stats.waiting) == (True, 1)
    loads.loaded[0].gate.set()
    assert answer.result(60).text == "www"
    assert idle.acquire(timeout=60)
    engine.close()


def test_without_a_limit_they_stay() -> None:
    loads = Loads()
    engine = KeptEngine(loads.open)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: engine.submit(request("What?")).result(60), range(40)))
    assert len(answers) == 40
    assert len(loads.loaded) == 1
    engine.close()
    assert loads.closed == 1


def test_weights_that_could_not_be_loaded_are_tried_again_by_the_next_request() -> None:
    loads = Loads()
    loads.fails = 2
    engine = KeptEngine(loads.open)
    for _ in range(2):
        with pytest.raises(ModelError, match="no memory now"):
            engine.submit(request("What?"))
    assert engine.submit(request("What?")).result(60).text
    engine.close()


def test_files_that_changed_meanwhile_are_not_loaded() -> None:
    loads, idle = Loads(), threading.Semaphore(0)
    engine = KeptEngine(loads.open, keep_alive=0.01, on_idle=idle.release)
    engine.submit(request("What?")).result(60)
    assert idle.acquire(timeout=60)
    loads.settings["--model"] = "fake 2"
    with pytest.raises(ModelError, match="changed since the server was started"):
        engine.submit(request("What?"))
    engine.close()


def test_a_device_that_fails_is_told_once_for_each_request() -> None:
    told: list[ModelError] = []
    loads = Loads()
    engine = KeptEngine(loads.open, on_failure=told.append)
    engine.load()

    def fail(_: Request) -> None:
        raise ModelError("the GPU failed")

    loads.loaded[0].answer = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(ModelError):
        engine.submit(request("What?")).result(60)
    until(lambda: len(told) == 1)
    assert engine.submit(request("wait")).cancel()  # a client that left is no failure
    assert len(told) == 1
    engine.close()
