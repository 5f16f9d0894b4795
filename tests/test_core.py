"""Memory that runs out, at every place where it can: answers are right, or say so, and nothing is left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from idefics_cli.config import ModelSettings
from idefics_cli.engine.families.base import NativeFamily, Prompt
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.sequence import Elapsed
from idefics_cli.engine.native.sequence import Sequence as Asked
from idefics_cli.engine.native.weights import Weights
from idefics_cli.errors import FailureKind, ModelError
from idefics_cli.records import Request
from tests.small_checkpoints import save_checkpoint, settings_of, small_requests, small_runner, weights_of

MOST_STEPS = 2000
PLANS = {
    "pieces": MemoryPlan(max_num_seqs=4, slots=300, max_projected_patches=1 << 14, max_num_batched_tokens=None),
    "padded": MemoryPlan(max_num_seqs=4, slots=300, max_projected_patches=400, max_num_batched_tokens=128),
    "tight": MemoryPlan(max_num_seqs=3, slots=40, max_projected_patches=1 << 14, max_num_batched_tokens=None),
}
"""The tight one has a KV cache that has to grow for the longer prompts."""


class Faults(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Counts operations, and raises at those that `fails` picks by their number and result."""

    def __init__(self, fails: Callable[[int, Any], bool] = lambda number, result: False) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.count, self._fails = 0, fails

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if self._fails(self.count, result):
            raise torch.OutOfMemoryError("no memory left")
        return result


Found = dict[int, tuple[tuple[int, ...], float] | None]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    folder = save_checkpoint(tmp_path_factory.mktemp("small"), generation={"eos_token_id": [131, 103, 121]})
    return settings_of(folder, max_new_tokens=6)


@pytest.fixture(scope="module")
def prepared(settings: ModelSettings) -> tuple[Weights, NativeFamily]:
    weights, family = weights_of(settings)
    read: dict[str, torch.Tensor] = {}
    source = weights.tensor

    def cached(name: str) -> torch.Tensor:
        if name not in read:
            read[name] = source(name)
        return read[name]

    return Weights(cached, settings.quantize, weights.dtype, weights.device), family


def core_of(runner: ModelRunner, plan: MemoryPlan) -> EngineCore:
    """Return a core that launches steps ahead, as on a GPU; not with the first plan, as on a CPU."""
    return EngineCore(runner, plan, is_ahead=plan is not PLANS["pieces"])


def sequences(family: NativeFamily, requests: Sequence[Request]) -> list[Asked]:
    builder = family.prompt_builder("{question}")
    return [
        Asked(
            builder.build(request.conversation, [len(page.crops) for page in request.pages]),
            dict(zip(request.page_ids, request.pages, strict=True)),
            request.page_ids,
        )
        for request in requests
    ]


def drive(core: EngineCore, asked: Sequence[Asked]) -> Found:
    """Run sequences to their end, the second half of them submitted on the way."""
    number = {sequence: index for index, sequence in enumerate(asked)}
    later = list(asked[len(asked) // 2 :])
    for sequence in asked[: len(asked) // 2]:
        core.add(sequence)
    found: Found = {}
    for step in range(MOST_STEPS):
        if later and step >= 3:
            core.add(later.pop(0))
        for sequence in core.step():
            assert number[sequence] not in found
            if sequence.failure is not None:
                assert sequence.failure.kind is FailureKind.OUT_OF_MEMORY
                found[number[sequence]] = None
            else:
                assert sequence.output is not None
                found[number[sequence]] = (sequence.output.tokens, sequence.output.logprob)
        if not core.has_work and not later:
            return found
    raise AssertionError(f"not done after {MOST_STEPS} steps: {found}")


def check(found: Found, expected: Found) -> int:
    """Compare with the undisturbed run; returns how many failed."""
    assert found.keys() == expected.keys()
    for number, answer in found.items():
        undisturbed = expected[number]
        assert undisturbed is not None
        if answer is not None:
            assert answer[0] == undisturbed[0]
            assert answer[1] == pytest.approx(undisturbed[1], rel=1e-4)
    return sum(answer is None for answer in found.values())


def check_nothing_is_held(core: EngineCore, runner: ModelRunner, asked: Sequence[Asked]) -> None:
    """All slots are one free range again once unused prefixes are evicted, and no page is referenced."""
    runner.features.clear_unused()
    assert not any(page in runner.features for sequence in asked for page in sequence.page_ids)
    assert runner.cache is not None
    slots, tokens = runner.cache.slots, asked[0].prompt.tokens
    length = slots - 1 - 6  # with the answer, all but the slot of no sequence
    whole = Asked(
        Prompt(
            (*tokens[: asked[0].prompt.prefix_length], *[tokens[-1]] * length)[:length], asked[0].prompt.prefix_length
        ),
        dict(zip(("whole",), small_requests()[0].pages, strict=True)),
        ("whole",),
    )
    core.add(whole)
    done = [sequence for _ in range(20) for sequence in core.step()]
    assert [sequence.failure for sequence in done] == [None]
    assert runner.cache.slots == slots
    runner.features.clear_unused()
    assert "whole" not in runner.features


@pytest.fixture(scope="module", params=PLANS)
def plan(request: pytest.FixtureRequest) -> MemoryPlan:
    return PLANS[request.param]


@pytest.fixture(scope="module")
def undisturbed(plan: MemoryPlan, settings: ModelSettings, prepared: tuple[Weights, NativeFamily]) -> tuple[Found, int]:
    """Answers, and the number of operations."""
    runner, family = small_runner(settings, prepared)
    with Faults() as faults:
        core = core_of(runner, plan)
        asked = sequences(family, small_requests())
        found = drive(core, asked)
    assert None not in found.values()
    check_nothing_is_held(core, runner, asked)
    return found, faults.count


def disturbed(
    fails: Callable[[int, Any], bool],
    plan: MemoryPlan,
    settings: ModelSettings,
    prepared: tuple[Weights, NativeFamily],
    expected: Found,
) -> int:
    """Run with faults; returns how many sequences failed."""
    runner, family = small_runner(settings, prepared)
    with Faults(fails):
        try:
            core = core_of(runner, plan)
            asked = sequences(family, small_requests())
            found = drive(core, asked)
        except ModelError:
            return len(expected)  # not even an empty cache fits
    failed = check(found, expected)
    check_nothing_is_held(core, runner, asked)
    return failed


def chosen(count: int, *, every: bool) -> list[int]:
    """Numbers of operations: all of them; or a sample, and a stretch without gaps towards the end, where tokens are decoded."""
    dense = range(count * 3 // 4, count * 3 // 4 + 40)
    return list(range(1, count + 1)) if every else sorted({*range(1, count + 1, 251), *dense})


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_operation_that_fails(
    every: bool,
    plan: MemoryPlan,
    settings: ModelSettings,
    prepared: tuple[Weights, NativeFamily],
    undisturbed: tuple[Found, int],
) -> None:
    expected, count = undisturbed
    for fault in chosen(count, every=every):
        failed = disturbed(lambda number, result, fault=fault: number == fault, plan, settings, prepared, expected)  # type: ignore[misc]
        assert failed <= 1, fault


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("length", [3, 40, 10**9])
def test_operations_that_fail_one_after_another(
    length: int,
    every: bool,
    plan: MemoryPlan,
    settings: ModelSettings,
    prepared: tuple[Weights, NativeFamily],
    undisturbed: tuple[Found, int],
) -> None:
    expected, count = undisturbed
    for fault in range(1, count + 1, 37 if every else 401):

        def fails(number: int, result: Any, fault: int = fault) -> bool:
            return fault <= number < fault + length

        runner, family = small_runner(settings, prepared)
        with Faults(fails) as faults:
            try:
                core = core_of(runner, plan)
                asked = sequences(family, small_requests())
                check(drive(core, asked), expected)
            except ModelError:
                continue  # memory for an empty cache is gone
        if faults.count > fault + length:
            check_nothing_is_held(core, runner, asked)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_operations_of_more_than_so_many_bytes_fail(
    every: bool,
    plan: MemoryPlan,
    settings: ModelSettings,
    prepared: tuple[Weights, NativeFamily],
    undisturbed: tuple[Found, int],
) -> None:
    """Crops go one by one, the batch shrinks, and at last everything fails."""
    sizes: set[int] = set()

    def note(number: int, result: Any) -> bool:
        sizes.update(one.nbytes for one in results(result))
        return False

    expected, _ = undisturbed
    disturbed(note, plan, settings, prepared, expected)
    limits = sorted(sizes)
    failures = [
        disturbed(
            lambda number, result, limit=limit: any(one.nbytes > limit for one in results(result)),  # type: ignore[misc]
            plan, settings, prepared, expected,
        )
        for limit in (limits if every else limits[:-20:30] + limits[-20:])
    ]  # fmt: skip
    assert failures[0] == len(expected)
    assert failures[-1] == 0
    assert any(0 < failed < len(expected) for failed in failures)


def results(result: Any) -> list[torch.Tensor]:
    parts = result if isinstance(result, list | tuple) else [result]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def test_crops_that_do_not_fit_together_go_one_by_one(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    split = [request for request in small_requests() if request.page_ids == ("split",)]

    def fails(number: int, result: Any) -> bool:
        return any(one.dim() == 4 and one.dtype is torch.uint8 and len(one) > 1 for one in results(result))

    plan = PLANS["pieces"]
    runner, family = small_runner(settings, prepared)
    core = core_of(runner, plan)
    expected = drive(core, sequences(family, split))
    assert disturbed_requests(split, fails, plan, settings, prepared) == expected


def disturbed_requests(
    requests: Sequence[Request],
    fails: Callable[[int, Any], bool],
    plan: MemoryPlan,
    settings: ModelSettings,
    prepared: tuple[Weights, NativeFamily],
) -> dict[int, tuple[tuple[int, ...], Any] | None]:
    runner, family = small_runner(settings, prepared)
    with Faults(fails):
        core = core_of(runner, plan)
        found = drive(core, sequences(family, requests))
    return {number: answer and (answer[0], pytest.approx(answer[1], rel=1e-4)) for number, answer in found.items()}


def test_a_sequence_that_was_restarted_says_so(settings: ModelSettings, prepared: tuple[Weights, NativeFamily]) -> None:
    requests = small_requests()[:1] * 4
    runner, family = small_runner(settings, prepared)
    with Faults() as faults:
        core = core_of(runner, PLANS["pieces"])
        asked = sequences(family, requests)
        drive(core, asked)
    assert not any(sequence.is_preempted for sequence in asked)
    runner, family = small_runner(settings, prepared)
    with Faults(lambda number, result: number == faults.count * 9 // 10):
        core = core_of(runner, PLANS["pieces"])
        asked = sequences(family, requests)
        drive(core, asked)
    assert any(sequence.is_preempted for sequence in asked)
    assert all(sequence.failure is None for sequence in asked)


def test_an_answer_that_has_ended_is_not_lost_to_a_step_launched_behind_it(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    """The last step of a sequence is read after another one has been launched, which it takes in vain."""

    def run(fails: Callable[[int, Any], bool] = lambda number, result: False) -> tuple[Asked, range, EngineCore]:
        runner, family = small_runner(settings, prepared)
        core = core_of(runner, PLANS["padded"])
        (asked,) = sequences(family, small_requests()[1:2])
        core.add(asked)
        with Faults(fails) as faults:
            for _ in range(MOST_STEPS):
                before = faults.count
                if list(core.step()):
                    return asked, range(before + 1, faults.count + 1), core
        raise AssertionError("not done")

    expected, vain, _ = run()
    assert expected.output is not None
    assert expected.output.is_complete
    assert len(vain) > 10
    for fault in vain[::5]:
        asked, _, core = run(lambda number, result, fault=fault: number == fault)  # type: ignore[misc]
        assert asked.failure is None, fault
        assert asked.output == expected.output
        assert not asked.is_preempted
        assert not list(core.step())
        assert not core.has_work


@pytest.mark.parametrize("is_ahead", [False, True])
def test_steps_are_borne_by_those_who_gained_a_token_of_them(
    is_ahead: bool, settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    """What a sequence takes in vain, once it has ended, is shared out among the others."""
    runner, family = small_runner(settings, prepared)
    core = EngineCore(runner, PLANS["padded"], is_ahead=is_ahead)
    asked = sequences(family, small_requests())
    drive(core, asked)
    parts: dict[Elapsed, float] = {}
    for sequence in asked:
        assert sequence.output is not None
        assert len(sequence.decode) == len(sequence.output.tokens) - 1
        for timer, part in sequence.decode:
            parts[timer] = parts.get(timer, 0.0) + part
    assert len({len(sequence.decode) for sequence in asked}) > 1
    assert list(parts.values()) == pytest.approx([1.0] * len(parts))


def test_what_is_watched_is_told_once(settings: ModelSettings, prepared: tuple[Weights, NativeFamily]) -> None:
    """Also where a step encodes a page or begins others, and who runs gets nothing."""
    runner, family = small_runner(settings, prepared)
    core = core_of(runner, PLANS["padded"])
    asked = sequences(family, small_requests())
    told: dict[Asked, list[tuple[int, ...]]] = {sequence: [] for sequence in asked}
    for sequence in asked:
        sequence.is_watched = True
    later = list(asked)
    while later or core.has_work:
        if later:
            core.add(later.pop(0))
        list(core.step())
        for sequence, (tokens, _) in core.watched(first_only=False).items():
            told[sequence].append(tokens)
    for sequence, tokens_so_far in told.items():
        assert sequence.output is not None
        lengths = [len(tokens) for tokens in tokens_so_far]
        assert lengths == sorted({*lengths} - {0})
        assert all(sequence.output.tokens[: len(tokens)] == tokens for tokens in tokens_so_far)


def test_a_cache_that_does_not_fit_is_halved_until_it_does(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    def too_many_slots(number: int, result: Any) -> bool:
        return any(one.dim() == 4 and one.dtype is torch.float32 and one.shape[1] > 2000 for one in results(result))

    plan = dataclasses.replace(PLANS["pieces"], max_num_seqs=64, slots=10_000)
    runner, family = small_runner(settings, prepared)
    with Faults(too_many_slots):
        core = core_of(runner, plan)
        asked = sequences(family, small_requests())
        drive(core, asked)
    assert core.plan.max_num_seqs == 8
    assert runner.cache is not None
    assert 1000 < runner.cache.slots <= 2000
    assert all(sequence.is_preempted for sequence in asked)
    with Faults(lambda number, result: any(one.dim() == 4 for one in results(result))), pytest.raises(ModelError):
        core_of(runner, plan)


def test_a_prompt_longer_than_the_cache_makes_it_grow(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    runner, family = small_runner(settings, prepared)
    core = core_of(runner, dataclasses.replace(PLANS["pieces"], slots=30))
    assert runner.cache is not None
    found = drive(core, sequences(family, small_requests()))
    assert None not in found.values()
    assert runner.cache.slots > 60


def test_prefixes_are_shared_and_the_cost_of_a_page_is_divided(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily]
) -> None:
    runner, family = small_runner(settings, prepared)
    core = core_of(runner, PLANS["pieces"])
    asked = sequences(family, small_requests()[1:3])
    for sequence in asked:
        core.add(sequence)
    while core.has_work:
        list(core.step())
    first, second = (sequence.costs_ms()[0] for sequence in asked)
    assert first == second > 0
    (later,) = sequences(family, small_requests()[1:2])
    core.add(later)
    while core.has_work:
        list(core.step())
    assert later.costs_ms()[0] == 0
    assert later.output == asked[0].output
