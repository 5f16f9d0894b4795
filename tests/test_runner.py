"""What the runner does when memory is short; that its answers are right is tested with the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.decode import Decoder
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.operations import Operations
from idefics_cli.engine.runner import Runner, RunnerSettings
from idefics_cli.records import Answer, Request


def texts(answers: list[Answer]) -> dict[int, str]:
    return {answer.number: answer.text for answer in answers}


@pytest.fixture(scope="module")
def some(sample_requests: list[Request]) -> list[Request]:
    return sample_requests[:30]


@pytest.fixture(scope="module")
def expected(tiny_settings: ModelSettings, some: list[Request]) -> dict[int, str]:
    return texts(list(Idefics2Engine(tiny_settings).answer(some)))


def on(card: type[Runner], settings: ModelSettings) -> Idefics2Engine:
    """Return an engine whose runner is on such a card."""
    engine = Idefics2Engine(settings)
    checkpoint = open_checkpoint(settings)
    model = load_model(checkpoint)
    limits = RunnerSettings(
        rows=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        ends=(model.generation_config.eos_token_id,),
        banned=(),
        kernels=settings.kernels,
        fp8=False,
        gpu_memory=0.0,
    )
    engine._runner = card(model, checkpoint.normalization, checkpoint.device, limits)
    return engine


def full() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("no memory left")


def test_prompts_that_do_not_fit_together_are_halved_and_say_so(
    tiny_settings: ModelSettings, some: list[Request], expected: dict[int, str]
) -> None:
    class RoomForTwoPrompts(Runner):
        def _prefill(self, new: Sequence[int], *others: Any) -> None:
            if len(new) > 2:
                raise full()
            super()._prefill(new, *others)

    answers = list(on(RoomForTwoPrompts, dataclasses.replace(tiny_settings, batch_size=16)).answer(some))
    assert texts(answers) == expected
    assert "batch halved for memory" in answers[0].warning
    assert max(answer.batch_size for answer in answers) <= 8


def test_rows_that_can_not_go_on_together_begin_again(
    tiny_settings: ModelSettings, some: list[Request], expected: dict[int, str]
) -> None:
    class Tiring(Decoder):
        steps = 0

        def step(self, rows: Sequence[int], operations: Operations) -> None:
            Tiring.steps += 1
            if len(rows) > 5 and Tiring.steps > 3:
                raise full()
            super().step(rows, operations)

    class RoomForFiveRows(Runner):
        def _has_new_cache(self, slots: int) -> bool:
            made = super()._has_new_cache(slots)
            self._decoder.__class__ = Tiring
            return made

    answers = list(on(RoomForFiveRows, dataclasses.replace(tiny_settings, batch_size=16)).answer(some))
    assert texts(answers) == expected
    assert any("batch halved for memory" in answer.warning for answer in answers)


def test_a_prompt_that_does_not_fit_even_alone_fails_alone(
    tiny_settings: ModelSettings, some: list[Request], expected: dict[int, str]
) -> None:
    longest = max(len(question.question) for question in some)
    large = {request.number for request in some if len(request.question) == longest}

    class RoomForShortPrompts(Runner):
        def _prefill(self, new: Sequence[int], *others: Any) -> None:
            if any(some[self._active[row].prompt.number].number in large for row in new):
                raise full()
            super()._prefill(new, *others)

    engine = on(RoomForShortPrompts, dataclasses.replace(tiny_settings, batch_size=4))
    # One window, so that a prompt's number is its place among the requests.
    answers = {answer.number: answer for answer in engine._answer_window(some)}
    assert all(str(answers[number].failure).startswith("out-of-memory") for number in large)
    fine = {number: answer.text for number, answer in answers.items() if number not in large}
    assert fine == {number: text for number, text in expected.items() if number not in large}


def test_rows_that_the_cache_has_no_memory_for_are_halved(
    tiny_settings: ModelSettings, some: list[Request], expected: dict[int, str]
) -> None:
    class RoomForThreeThousandSlots(Runner):
        def _has_new_cache(self, slots: int) -> bool:
            return slots <= 3000 and super()._has_new_cache(slots)

    engine = on(RoomForThreeThousandSlots, dataclasses.replace(tiny_settings, batch_size=64))
    answers = list(engine.answer(some))
    assert texts(answers) == expected
    assert engine.batch_size < 8
    assert all("batch halved for memory" in answer.warning for answer in answers)


def test_a_prompt_longer_than_the_cache_makes_it_grow(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    pages = tuple(sample_requests[0].pages[0] for _ in range(6))
    long = Request(0, "What is the total?", pages, tuple(range(6)))
    engine = Idefics2Engine(dataclasses.replace(tiny_settings, batch_size=1))
    slots = engine.runner._cache.slots
    (answer,) = engine.answer([long])
    assert answer.failure is None
    assert answer.prompt_tokens > slots
    assert engine.runner._cache.slots > slots


def test_a_prompt_longer_than_the_model_fails_with_words(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    page = sample_requests[0].pages[0]
    long = Request(0, "a" * 4096, (page,), (0,))
    answers = {
        a.number: a
        for a in Idefics2Engine(tiny_settings).answer([long, dataclasses.replace(long, number=1, question="Who?")])
    }
    assert str(answers[0].failure).startswith("too-large: a prompt of")
    assert answers[1].failure is None
