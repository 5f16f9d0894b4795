"""Engines in processes of their own answer as those of this process do, whatever happens to the process."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest

from idefics_cli.config import ModelSettings
from idefics_cli.documents.shared_memory import SLOTS, SharedMemory, read_crops, shared_memory
from idefics_cli.engine import DeferredEngine, open_engine
from idefics_cli.engine_process.parent import EngineProcess, engine_in_process, open_in_process
from idefics_cli.errors import ModelError
from idefics_cli.openai_api.response import TextStream
from idefics_cli.records import Answer, GeneratedTokens, PreparedPage, Request
from tests import process_engines
from tests.fakes import FakeEngine
from tests.killed_parents import left_by_killed
from tests.process_engines import engines_of, letters, open_telling
from tests.servers import until

SECONDS = 60
Open = Callable[[ModelSettings], DeferredEngine]


def children() -> list[psutil.Process]:
    """Return the engines' processes that this one has."""
    return engines_of(os.getpid())


@pytest.fixture
def memory() -> SharedMemory | None:
    return shared_memory()


@pytest.fixture
def started() -> Iterator[Callable[..., DeferredEngine]]:
    engines: list[DeferredEngine] = []

    def start(open_there: Open = open_telling, **more: object) -> DeferredEngine:
        engine = engine_in_process(open_there, ModelSettings("fake"), FakeEngine().info, letters, **more)  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()
    assert children() == []


def process_of(engine: DeferredEngine) -> psutil.Process:
    loaded = engine.load()
    assert isinstance(loaded, EngineProcess)
    return psutil.Process(loaded.pid)


def asking(question: str, grey: int = 100, page_id: str = "p", **more: object) -> Request:
    page = PreparedPage((np.full((20, 30, 3), grey, np.uint8),), "pillow", 0.0, 0.0)
    return Request(question, (page,), (page_id,), **more)  # type: ignore[arg-type]


def in_slot(memory: SharedMemory, grey: int) -> PreparedPage:
    taken = memory.put([np.full((20, 30, 3), grey, np.uint8), np.full((5, 6, 3), grey, np.uint8)])
    assert taken is not None
    return PreparedPage(read_crops(taken[1], [(20, 30, 3), (5, 6, 3)]), "pillow", 0.0, 0.0)


def comparable(answer: Answer) -> tuple[object, ...]:
    assert answer.tokens is not None
    assert answer.tokens.decode(answer.tokens.ids) == answer.text
    kept = dataclasses.replace(answer, tokens=None, batch_size=0, vision_ms=0, prefill_ms=0, decode_ms=0)
    return kept, answer.tokens.ids, answer.tokens.logprobs, answer.tokens.stop


# --- answers ---


def test_answers_and_their_tokens_are_those_of_this_process(
    tiny_settings: ModelSettings, sample_requests: list[Request], memory: SharedMemory | None
) -> None:
    requests = sample_requests[:20]
    here = open_engine(tiny_settings)
    expected = [one.result(SECONDS) for one in [here.submit(request) for request in requests]]
    here.close()
    there = open_in_process(tiny_settings, memory=memory)
    assert there.info == here.info
    told: list[list[GeneratedTokens]] = [[] for _ in requests]
    watched = [dataclasses.replace(one, on_tokens=to.append) for one, to in zip(requests, told, strict=True)]
    answers = [one.result(SECONDS) for one in [there.submit(request) for request in watched]]
    assert list(map(comparable, answers)) == list(map(comparable, expected))
    for answer, tokens in zip(answers, told, strict=True):
        stream = TextStream()
        assert answer.tokens is not None
        for one in tokens:
            assert one.ids == answer.tokens.ids[: len(one.ids)]
            assert one.logprobs == answer.tokens.logprobs[: len(one.ids)]
        assert "".join(map(stream.added, tokens)) + stream.rest(answer) == answer.text
        assert len({one.ids for one in tokens}) > 1
    until(lambda: (there.stats.running, there.stats.waiting) == (0, 0))
    assert there.stats.pages_encoded == 5
    assert there.steps > 10
    there.close()
    assert children() == []


def test_engines_of_transformers_run_there_too(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    settings = dataclasses.replace(tiny_settings, num_beams=2, max_new_tokens=8)
    texts = []
    for engine in (open_engine(settings), open_in_process(settings)):
        assert engine.info.settings["engine"].startswith("transformers")
        texts.append([engine.submit(one).result(SECONDS).text for one in sample_requests[1:3]])
        engine.close()
    assert texts[0] == texts[1]


def test_tokens_that_begin_anew_are_told_as_they_are(started: Callable[..., DeferredEngine]) -> None:
    told: list[GeneratedTokens] = []
    answer = started().submit(asking("spell abcdef|abcdefgh", on_tokens=told.append)).result(SECONDS)
    assert answer.text == "abcdefgh"
    assert answer.tokens is not None
    assert answer.tokens.decode(answer.tokens.ids) == "abcdefgh"
    texts = [letters(one.ids) for one in told]
    assert texts
    assert all("abcdefgh".startswith(text) for text in texts)
    assert all(
        (one.decode(one.ids), one.stop, len(one.logprobs)) == (text, ("!",), len(text))
        for one, text in zip(told, texts, strict=True)
    )
    assert texts[-1] == "abcdefgh"


def test_what_one_request_does_to_the_engine_is_its_own(started: Callable[..., DeferredEngine]) -> None:
    engine = started()
    with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
        engine.submit(asking("submit")).result(SECONDS)
    with pytest.raises(ModelError, match="the GPU failed"):
        engine.submit(asking("device")).result(SECONDS)
    failure = engine.submit(asking("fail")).result(SECONDS).failure
    assert failure is not None
    assert failure.detail == "asked to fail"
    assert engine.submit(asking("What?", grey=51)).result(SECONDS).text == "What? @51"


# --- pages ---


def test_pages_are_read_where_they_lie(started: Callable[..., DeferredEngine], memory: SharedMemory | None) -> None:
    if memory is None:
        pytest.skip("no anonymous memory files here")
    engine = started(memory=memory)
    lying = in_slot(memory, 40)
    elsewhere = asking("What?", grey=50).pages[0]
    large = PreparedPage((np.full((2400, 2400, 3), 60, np.uint8),), "pillow", 0.0, 0.0)  # no slot holds it
    asked = Request("What?", (lying, elsewhere, large, lying), ("a", "b", "c", "a"))
    assert engine.submit(asked).result(SECONDS).text == "What? @40+50+60+40"
    taken = [memory.take() for _ in range(SLOTS - 1)]
    assert engine.submit(dataclasses.replace(asked, question="And?")).result(SECONDS).text == "And? @40+50+60+40"
    del taken


def test_without_shared_memory_pages_pass_through_the_pipe(started: Callable[..., DeferredEngine]) -> None:
    assert started().submit(asking("What?", grey=70)).result(SECONDS).text == "What? @70"


def test_a_slot_is_not_taken_again_before_nothing_reads_it_there(
    started: Callable[..., DeferredEngine], memory: SharedMemory | None, tmp_path: Path
) -> None:
    if memory is None:
        pytest.skip("no anonymous memory files here")
    engine, gate = started(memory=memory), tmp_path / "gate"
    page = in_slot(memory, 40)
    slot = memory.slot_of(page.crops)
    answer = engine.submit(Request(f"wait {gate}", (page,), ("a",)))
    del page
    until(lambda: Path(f"{gate}.taken").exists())
    assert answer.cancel()
    with pytest.raises(CancelledError):
        answer.result()
    gc.collect()
    for grey in range(100, 120):  # pages of others come and go meanwhile
        other = in_slot(memory, grey)
        assert memory.slot_of(other.crops) != slot
        assert engine.submit(Request("What?", (other,), (str(grey),))).result(SECONDS).text == f"What? @{grey}"
        del other
    gate.touch()
    until(lambda: Path(f"{gate}.greys").exists())
    assert Path(f"{gate}.greys").read_text() == "40"

    def is_free() -> bool:
        taken = memory.take()
        return taken is not None and taken[0] == slot

    until(is_free)


# --- cancelling, closing, dying ---


def test_a_request_that_is_cancelled_is_cancelled_there(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    engine = open_in_process(dataclasses.replace(tiny_settings, max_new_tokens=600, min_new_tokens=500))
    first = threading.Event()
    answer = engine.submit(dataclasses.replace(sample_requests[1], on_tokens=lambda _: first.set()))
    assert first.wait(SECONDS)
    assert engine.stats.running == 1
    steps = engine.steps
    assert answer.cancel()
    until(lambda: engine.stats.running == 0)
    assert engine.steps < steps + 300
    engine.close()


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_process_that_is_killed_ends_all_requests_and_takes_no_more(
    started: Callable[..., DeferredEngine], tmp_path: Path, is_busy: bool
) -> None:
    lost: list[ModelError] = []
    engine = started(on_lost=lost.append)
    process = process_of(engine)
    answers = [engine.submit(asking(f"wait {tmp_path}/none")) for _ in range(3 if is_busy else 0)]
    if is_busy:
        until(lambda: (tmp_path / "none.taken").exists())
    process.kill()
    for answer in answers:
        with pytest.raises(ModelError, match="ended: killed by SIGKILL, as the system does where memory is short"):
            answer.result(SECONDS)
    until(lambda: len(lost) == 1)
    with pytest.raises(ModelError, match="ended: killed by SIGKILL"):
        engine.submit(asking("What?")).result(0)


def test_a_process_that_is_killed_by_a_request_is_lost(started: Callable[..., DeferredEngine]) -> None:
    with pytest.raises(ModelError, match="ended: killed by SIGKILL"):
        started().submit(asking("kill")).result(SECONDS)


def test_signals_to_all_of_a_service_leave_the_process_to_its_parent(started: Callable[..., DeferredEngine]) -> None:
    engine = started()
    process = process_of(engine)
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert engine.submit(asking("What?", grey=70)).result(SECONDS).text == "What? @70"
    assert os.getsid(process.pid) == process.pid


def test_to_close_ends_the_process_and_what_is_asked(started: Callable[..., DeferredEngine], tmp_path: Path) -> None:
    lost: list[ModelError] = []
    engine = started(on_lost=lost.append)
    process = process_of(engine)
    answer = engine.submit(asking(f"wait {tmp_path}/none"))
    engine.close()
    assert not process.is_running()
    with pytest.raises(ModelError, match="closed"):
        answer.result(0)
    with pytest.raises(ModelError, match="closed"):
        engine.submit(asking("What?"))
    assert lost == []
    engine.close()


def test_to_close_while_it_loads_ends_the_process(started: Callable[..., DeferredEngine]) -> None:
    engine = started(process_engines.open_waiting)
    engine.start()
    until(lambda: len(children()) == 1)
    time.sleep(0.5)
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 3
    assert children() == []
    with pytest.raises(ModelError, match="closed"):
        engine.load()


@pytest.mark.parametrize("is_stopped", [True, False])
def test_to_close_does_not_wait_for_ever(started: Callable[..., DeferredEngine], is_stopped: bool) -> None:
    engine = started(process_engines.open_ignoring)
    process = process_of(engine)
    if is_stopped:
        process.suspend()
        for number in range(300):  # more than the pipe holds
            engine.submit(asking("x" * 10_000, page_id=str(number)))
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 8
    assert not process.is_running()


@pytest.mark.parametrize(
    ("opened", "error", "words"),
    [
        (process_engines.open_refusing, ModelError, "^no such weights, says the loader$"),
        (process_engines.open_broken, RuntimeError, "ZeroDivisionError: a bug"),
        (process_engines.open_dying, ModelError, "the engine's process has ended: killed by SIGKILL"),
        (process_engines.open_changed, ModelError, "its files have changed while they were loaded"),
    ],
)
def test_what_ends_the_loading_is_said(
    started: Callable[..., DeferredEngine], opened: Open, error: type[Exception], words: str
) -> None:
    lost: list[ModelError] = []
    engine = started(opened, on_lost=lost.append)
    with pytest.raises(error, match=words):
        engine.load()
    until(lambda: children() == [])
    assert lost == []


def test_the_log_is_that_of_this_process(started: Callable[..., DeferredEngine]) -> None:
    found: list[str] = []
    log = logging.getLogger("idefics_cli")
    handler, level = logging.Handler(), log.level
    handler.emit = lambda record: found.append(f"{record.name} {record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        started(process_engines.open_logging).load()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert found == ["idefics_cli.engine.test INFO as planned"]


def test_it_ends_with_a_parent_that_is_killed() -> None:
    script = (
        "import sys, threading\n"
        "from tests.test_engine_process import *\n"
        "engine = engine_in_process(open_telling, ModelSettings('fake'), FakeEngine().info, letters)\n"
        "engine.load()\n"
        "engine.submit(asking('wait /nowhere/at/all'))\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    started, alive = left_by_killed(script, seconds=5)
    assert len(started) == 1
    assert alive == []


def test_memory_that_cannot_be_mapped_there_is_said(started: Callable[..., DeferredEngine]) -> None:
    memory = SharedMemory()
    reader, writer = os.pipe()
    memory.descriptor = reader  # which no process can map
    try:
        with pytest.raises(ModelError, match=r"can't map the .* GB of addresses"):
            started(memory=memory).load()
    finally:
        os.close(reader)
        os.close(writer)
