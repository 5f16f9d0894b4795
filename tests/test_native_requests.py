"""Requests with generation settings of their own, watched token by token, and withdrawn."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.config import ModelSettings
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.sequence import Sequence
from idefics_cli.errors import FailureKind
from idefics_cli.records import Answer, GeneratedTokens, Generation, Request
from tests.small_checkpoints import reference, save_checkpoint, settings_of, small_requests, small_runner
from tests.test_native_engine import answers, comparable, loaded

WANTED: list[tuple[Generation, dict[str, object]]] = [
    (Generation(max_new_tokens=3), {"max_new_tokens": 3}),
    (Generation(max_new_tokens=40), {"max_new_tokens": 40}),
    (Generation(temperature=0.8, seed=5), {"temperature": 0.8, "seed": 5}),
    (Generation(temperature=1.5, top_p=0.7), {"temperature": 1.5, "top_p": 0.7}),
    (Generation(stop=("e", "t")), {"stop": ("e", "t")}),
    (Generation(temperature=0.0), {}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"), generation={"eos_token_id": [131, 103, 121]})


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_with_their_own_settings_are_answered_together_as_by_an_engine_with_these(folder: Path) -> None:
    mixed = [
        dataclasses.replace(request, generation=generation) for generation, _ in WANTED for request in small_requests()
    ]
    found = comparable(answers(settings_of(folder, most_new_tokens=40), mixed[::2] + mixed[1::2]))
    separate = [one for _, changes in WANTED for one in answers(settings_of(folder, **changes), small_requests())]
    alone = comparable(separate)
    assert found == alone[::2] + alone[1::2]
    assert len(set(alone)) > 2 * len(small_requests())  # the settings matter


def test_a_request_that_wants_nothing_else_is_greedy_again_after_one_that_drew(folder: Path) -> None:
    engine = loaded(settings_of(folder, batch_size=1))
    try:
        plain = small_requests()[0]
        drawn = dataclasses.replace(plain, generation=Generation(temperature=2.0, seed=1))
        found = [engine.submit(request).result() for request in (plain, drawn, plain)]
    finally:
        engine.close()
    assert comparable(found[:1]) == comparable(found[2:]) != comparable(found[1:2])


def test_the_reference_takes_the_settings_of_a_request_too(folder: Path) -> None:
    requests = [
        dataclasses.replace(request, generation=generation)
        for generation, _ in (WANTED[0], WANTED[4], WANTED[5])
        for request in small_requests()
    ]
    model = reference(settings_of(folder))
    assert [(a.text, a.new_tokens, a.is_complete) for a in model.answer(requests)] == [
        (a.text, a.new_tokens, a.is_complete) for a in answers(settings_of(folder), requests)
    ]


def test_settings_of_a_request_do_not_go_with_choices(folder: Path) -> None:
    request = dataclasses.replace(small_requests()[0], generation=Generation(max_new_tokens=2))
    (answer,) = answers(settings_of(folder, max_new_tokens=None, choices=("Yes", "No")), [request])
    assert answer.failure is not None
    assert answer.failure.kind is FailureKind.BAD_QUESTION


def test_tokens_are_told_as_they_come_and_answers_do_not_change(folder: Path) -> None:
    told: dict[int, list[GeneratedTokens]] = {}
    requests = small_requests()
    watched = [
        dataclasses.replace(request, on_tokens=told.setdefault(number, []).append) if number % 2 else request
        for number, request in enumerate(requests)
    ]
    settings = settings_of(folder, max_new_tokens=90, ignore_eos=True)
    found = answers(settings, watched)
    assert comparable(found) == comparable(answers(settings, requests))
    for number, news in told.items():
        whole = found[number].tokens
        assert whole is not None
        for tokens in news:
            assert whole.ids[: len(tokens.ids)] == tokens.ids
            assert whole.logprobs[: len(tokens.ids)] == tokens.logprobs
        lengths = [len(tokens.ids) for tokens in news]
        assert lengths == sorted(set(lengths))
        assert lengths[0] == 1  # the first at once, the others from time to time
        assert len(lengths) > 1


def test_log_probabilities_of_tokens_add_up_to_the_answers(folder: Path) -> None:
    for answer in answers(settings_of(folder), small_requests()):
        assert answer.tokens is not None
        assert len(answer.tokens.logprobs) == answer.new_tokens
        assert sum(answer.tokens.logprobs) / answer.new_tokens == pytest.approx(answer.mean_logprob, abs=1e-5)


def test_what_is_withdrawn_gives_its_room_back_and_the_others_their_answers(folder: Path) -> None:
    settings = settings_of(folder, batch_size=2, max_new_tokens=60)
    requests = small_requests()
    undisturbed = comparable(answers(settings, requests))
    engine = loaded(settings)
    try:
        idle = engine.stats
        running = threading.Event()
        left = dataclasses.replace(requests[0], on_tokens=lambda _: running.set())
        futures = [engine.submit(request) for request in (left, *requests[1:], *requests)]
        assert running.wait(60)
        assert futures[0].cancel()  # is being decoded
        assert all(future.cancel() for future in futures[len(requests) + 1 :: 2])  # wait
        kept = [future for future in futures if not future.cancelled()]
        assert comparable([future.result(60) for future in kept]) == [
            undisturbed[number % len(requests)] for number, future in enumerate(futures) if not future.cancelled()
        ]
        until(lambda: engine.stats.running + engine.stats.waiting == 0)
        assert idle.running == idle.waiting == 0
    finally:
        engine.close()


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_withdrawn_sequence_leaves_no_slot_and_no_page_behind(is_ahead: bool, folder: Path) -> None:
    runner, family = small_runner(settings_of(folder, max_new_tokens=6))
    core = EngineCore(runner, MemoryPlan(2, 400, 1 << 14, None), is_ahead=is_ahead)
    start = core.stats.free_slots
    prompts = family.prompt_builder("{question}")

    def sequence(request: Request) -> Sequence:
        prompt = prompts.build(request.conversation, [len(page.crops) for page in request.pages])
        return Sequence(prompt, dict(zip(request.page_ids, request.pages, strict=True)), request.page_ids)

    for steps in range(12):  # at every stage: waiting for its page, ready, running
        asked = [sequence(request) for request in small_requests()]
        for one in asked:
            core.add(one)
        finished = [one for _ in range(steps) for one in core.step()]
        for one in asked:
            core.cancel(one)
            core.cancel(one)  # a second time changes nothing
        assert core.has_work in (False, is_ahead), steps
        assert not list(core.step()), steps  # what was launched before is read by nobody
        assert not core.has_work, steps
        assert len(finished) < len(asked)
        core._manager.evict_unused()
        assert core.stats.free_slots == start, steps
        runner.features.clear_unused()
        assert not any(page in runner.features for one in asked for page in one.page_ids), steps


def test_an_answer_that_is_there_is_not_withdrawn(folder: Path) -> None:
    engine = loaded(settings_of(folder))
    try:
        future = engine.submit(small_requests()[0])
        answer: Answer = future.result(60)
        assert not future.cancel()
        assert engine.submit(small_requests()[0]).result(60).text == answer.text
    finally:
        engine.close()


def test_pages_are_encoded_once_however_many_ask(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    engine = loaded(tiny_settings)
    try:
        for request in sample_requests[:12]:
            engine.submit(request).result(60)
        stats = engine.stats
    finally:
        engine.close()
    pages = len({page for request in sample_requests[:12] for page in request.page_ids})
    assert (stats.pages_encoded, stats.pages_reused) == (pages, 12 - pages)
