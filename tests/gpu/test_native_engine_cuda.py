"""The engine on a GPU: the answers of transformers and of the CPU, with kernels, graphs and padded batches."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from idefics_cli.config import Device, Dtype, Kernels, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.base import PromptBuilder
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.sequence import Sequence as Asked
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from idefics_cli.engine.transformers import TransformersModel
from idefics_cli.records import Answer, Request
from tests.small_checkpoints import opened

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


def answers(settings: ModelSettings, requests: Sequence[Request], seed: int | None = None) -> list[Answer]:
    """Answers in the order of the requests, submitted in that of the seed."""
    order = list(range(len(requests)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    engine = open_engine(settings)
    futures = {index: engine.submit(requests[index]) for index in order}
    found = [futures[index].result() for index in range(len(requests))]
    engine.close()
    assert not any(answer.failure for answer in found)
    return found


@pytest.fixture(scope="module")
def cuda(tiny_settings: ModelSettings) -> ModelSettings:
    return dataclasses.replace(tiny_settings, device=Device.CUDA, max_new_tokens=16)


def test_float32_answers_are_those_of_generate_and_of_the_cpu(
    cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    some = sample_requests[:40]
    checkpoint, family, _ = opened(cuda)
    model = TransformersModel(checkpoint, family, cuda, DeviceChoice("cuda", "float32"))
    found = [answer.text for answer in answers(cuda, some)]
    assert found == [model.answer([request])[0].text for request in some]
    assert found == [answer.text for answer in answers(dataclasses.replace(cuda, device=Device.CPU), some)]


@pytest.mark.parametrize("batch_size", [1, 3, 16, 64])
def test_kernels_and_graphs_leave_float32_answers_as_they_are(
    batch_size: int, cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    """All 200 questions, in batches whose sequences end at different steps and are replaced."""
    expected = [answer.text for answer in answers(dataclasses.replace(cuda, kernels=Kernels.OFF), sample_requests)]
    settings = dataclasses.replace(cuda, batch_size=batch_size)
    assert [answer.text for answer in answers(settings, sample_requests, batch_size)] == expected


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(Dtype.FLOAT32, Quantize.NONE), *((Dtype.BFLOAT16, quantize) for quantize in Quantize if quantize.is_native)],
)
@pytest.mark.parametrize("kernels", list(Kernels))
def test_an_answer_is_bit_for_bit_the_same_in_any_company(
    dtype: Dtype, quantize: Quantize, kernels: Kernels, cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    settings = dataclasses.replace(cuda, dtype=dtype, quantize=quantize, kernels=kernels)

    def found(batch_size: int) -> list[tuple[str, float, float, int]]:
        given = answers(dataclasses.replace(settings, batch_size=batch_size), sample_requests, batch_size)
        return [(answer.text, answer.confidence, answer.mean_logprob, answer.new_tokens) for answer in given]

    alone = found(1)
    assert found(7) == alone
    assert found(64) == alone


@pytest.mark.parametrize("kernels", list(Kernels))
@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": 1.5, "top_p": 0.9, "seed": 3},
        {"repetition_penalty": 1.3, "min_new_tokens": 5},
        {"stop": ("a",)},
        {"choices": ("Yes", "No", "not found", "12.50", "12.05"), "max_new_tokens": None},
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_generation_settings_leave_answers_the_same_in_any_company(
    generation: dict[str, Any], kernels: Kernels, cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    """Steps with logits processors are recorded as graphs too."""
    settings = dataclasses.replace(cuda, kernels=kernels, **generation)

    def found(batch_size: int) -> list[tuple[str, float, int]]:
        given = answers(dataclasses.replace(settings, batch_size=batch_size), sample_requests[:60], batch_size)
        return [(answer.text, answer.confidence, answer.new_tokens) for answer in given]

    alone = found(1)
    assert found(7) == alone
    assert found(64) == alone
    on_cpu = answers(dataclasses.replace(settings, device=Device.CPU), sample_requests[:20])
    same = sum(one.text == other[0] for one, other in zip(on_cpu, alone, strict=False))
    assert same >= 18  # the same random numbers; probabilities that differ in their last bits may draw another token


def core_of(settings: ModelSettings, plan: MemoryPlan, *, graph: bool) -> tuple[EngineCore, PromptBuilder]:
    checkpoint, family, choice = opened(settings)
    dtype: torch.dtype = getattr(torch, choice.dtype)
    weights = Weights(CheckpointSource(checkpoint, dtype, CUDA), settings.quantize, dtype, CUDA)

    class Launched(ModelRunner):
        def record_graph(self) -> None:
            """Launch every step kernel by kernel."""

    with torch.inference_mode():
        runner = (ModelRunner if graph else Launched)(weights, family, settings)
        return EngineCore(runner, plan), family.prompt_builder("{question}")


def run_without_thread(core: EngineCore, prompts: PromptBuilder, requests: Sequence[Request]) -> list[object]:
    """Return the outputs of requests, tokens and log-probabilities, in their order."""
    asked = [
        Asked(
            prompts.build(request.conversation, [len(page.crops) for page in request.pages]),
            dict(zip(request.page_ids, request.pages, strict=True)),
            request.page_ids,
        )
        for request in requests
    ]
    for sequence in asked:
        core.add(sequence)
    while core.has_work:
        list(core.step())
    assert not any(sequence.failure for sequence in asked)
    return [sequence.output for sequence in asked]


def outputs(settings: ModelSettings, plan: MemoryPlan, requests: Sequence[Request], *, graph: bool) -> list[object]:
    return run_without_thread(*core_of(settings, plan, graph=graph), requests)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.8, "top_p": 0.9},
        {"repetition_penalty": 1.2, "min_new_tokens": 3},
        {"choices": ("yes", "no"), "max_new_tokens": ModelSettings("tiny").max_new_tokens},
    ],
    ids=["plain", "drawn", "processed", "choices"],
)
def test_nothing_but_reading_a_step_waits_for_the_device(
    changes: dict[str, Any], cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    """Where graphs are recorded the device is waited for, once: nothing is recorded here."""
    core, prompts = core_of(dataclasses.replace(cuda, **changes), PLAN, graph=False)
    page = sample_requests[0]
    pages = [page, dataclasses.replace(page, page_ids=tuple(f"{one} again" for one in page.page_ids))]
    try:
        for page in pages:  # what is set up at first use, or for a shape, may wait
            assert all(run_without_thread(core, prompts, [page] * 5))
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


PLAN = MemoryPlan(max_num_seqs=16, slots=16 * 500, max_projected_patches=1 << 14, max_num_batched_tokens=1024)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_a_replayed_graph_is_the_steps_launched_one_by_one(
    dtype: Dtype, cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    settings, some = dataclasses.replace(cuda, dtype=dtype), sample_requests[:40]
    assert outputs(settings, PLAN, some, graph=True) == outputs(settings, PLAN, some, graph=False)


def test_padded_prefill_batches_are_prompts_computed_each_by_itself(
    cuda: ModelSettings, sample_requests: list[Request]
) -> None:
    """In float32: tokens are the same however prompts are cut into batches."""
    some = sample_requests[:40]
    expected = outputs(cuda, dataclasses.replace(PLAN, max_num_batched_tokens=None), some, graph=True)
    for tokens in (64, 256, 1024):
        found = outputs(cuda, dataclasses.replace(PLAN, max_num_batched_tokens=tokens), some, graph=True)
        for one, other in zip(found, expected, strict=True):
            assert one.tokens == other.tokens  # type: ignore[attr-defined]
            assert one.logprob == pytest.approx(other.logprob, rel=1e-3, abs=1e-4)  # type: ignore[attr-defined]


def test_bfloat16_is_the_default(cuda: ModelSettings, sample_requests: list[Request]) -> None:
    settings = dataclasses.replace(cuda, device=Device.AUTO, dtype=Dtype.AUTO)
    engine = open_engine(settings)
    assert (engine.info.settings["--dtype"], engine.info.capacity) == ("bfloat16", 128)
    assert all(0 < answer.confidence <= 1 for answer in answers(settings, sample_requests[:8]))


POISONED = """
import numpy as np, torch
from idefics_cli.config import ModelSettings
from idefics_cli.engine import open_engine
from idefics_cli.errors import ModelError
from idefics_cli.records import PreparedPage, Request

page = PreparedPage((np.full((490, 378, 3), 255, np.uint8),), "pillow", 0.0, 0.0)
engine = open_engine(ModelSettings("tiny"))
assert engine.submit(Request("What is the date?", (page,), ("0",))).result().failure is None
try:
    torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # out of bounds: an assertion on the device
    torch.cuda.synchronize()
except Exception:
    pass
for name in "12":
    try:
        engine.submit(Request("What is the date?", (page,), (name,))).result(timeout=30)
    except ModelError as error:
        print("exit code", error.exit_code)
"""


def test_a_poisoned_gpu_is_a_model_error() -> None:
    done = subprocess.run([sys.executable, "-c", POISONED], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("exit code 4") == 2, done.stdout + done.stderr[-2000:]
