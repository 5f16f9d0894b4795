"""The 8B shape with random weights in bfloat16: logits beside the stock model's, and memory within bounds."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idefics_cli.config import Dtype, Kernels, ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint, open_full_shape, random_model
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.stock import StockEngine
from idefics_cli.records import PreparedPage, Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SETTINGS = ModelSettings(dtype=Dtype.BFLOAT16, max_new_tokens=8, kernels=Kernels.ON, fixed_length=True)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_full_shape(SETTINGS)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Iterator[Any]:
    model = random_model(checkpoint)
    yield model
    del model
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(0)

    def page(crops: int, height: int, width: int) -> PreparedPage:
        coarse = rng.integers(0, 255, (crops, height // 7, width // 7, 3), dtype=np.uint8)
        return PreparedPage(tuple(coarse.repeat(7, 1).repeat(7, 2)), "pillow", 0.0, 0.0)

    pages = [page(5, 980, 756), page(1, 980, 756), page(5, 490, 980)]
    words = ["What is the total?", "Who?", "When was the invoice of the customer paid, and by whom?", "Where is it?"]
    return [Request(n, words[n % 4], (pages[n % 3],), (n % 3,)) for n in range(6)]


def recorded(engine: Idefics2Engine, requests: list[Request]) -> tuple[list[list[int]], list[Tensor]]:
    """Answer, and return each row's tokens and the logits that they were chosen from, (tokens, vocabulary)."""
    text, decoder = engine.runner._text, engine.runner._decoder
    steps: list[Tensor] = []
    plain_logits = text.logits

    def logits(states: Tensor, operations: Any) -> Tensor:
        steps.append(plain_logits(states, operations).clone())
        return steps[-1].clone()

    text.logits = logits  # type: ignore[method-assign]
    answers = sorted(engine.answer(requests), key=lambda answer: answer.number)
    text.logits = plain_logits  # type: ignore[method-assign]
    assert all(answer.failure is None and answer.batch_size == len(requests) for answer in answers)
    # Rows were placed page by page, in the order of the requests.
    places = sorted(range(len(requests)), key=lambda number: requests[number].page_ids[0])
    tokens = decoder._tokens[: len(requests)].tolist()
    stacked = torch.stack(steps, 1)
    return (
        [tokens[places.index(number)] for number in range(len(requests))],
        [stacked[places.index(number)] for number in range(len(requests))],
    )


@torch.inference_mode()
def stock_logits(engine: StockEngine, request: Request, tokens: list[int]) -> Tensor:
    """Return the logits that precede each of the tokens, all tokens given, float32."""
    crops = [[crop for page in request.pages for crop in page.crops]]
    pixels, mask = engine._pixels(crops)
    prompt = engine._prompts.tokens(request.question, [len(page.crops) for page in request.pages])
    ids = torch.tensor([[*prompt, *tokens[:-1]]], device="cuda")
    out = engine.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels.to(engine.model.dtype),
        pixel_attention_mask=mask,
    )
    logits: Tensor = out.logits[0, len(prompt) - 1 :].float()
    return logits


def test_logits_are_as_near_to_float32_as_stock_bfloat16(
    checkpoint: Checkpoint, model: Any, requests: list[Request]
) -> None:
    """Prefill and every decode step; greedy tokens agree wherever stock's lead is larger than the error."""
    engine = Idefics2Engine(SETTINGS, checkpoint, model)
    tokens, ours = recorded(engine, requests)
    stock = StockEngine(SETTINGS, checkpoint, model)
    exact = StockEngine(SETTINGS, checkpoint, copy.deepcopy(model).float())
    decided = 0
    for request, some, logits in zip(requests, tokens, ours, strict=True):
        reference = stock_logits(exact, request, some)[: len(logits)]
        bfloat16 = stock_logits(stock, request, some)[: len(logits)]
        for step in range(len(logits)):
            size = reference[step].norm()
            own_error = (logits[step] - reference[step]).norm() / size
            stock_error = (bfloat16[step] - reference[step]).norm() / size
            print(f"row {request.number} step {step}: ours {own_error:.4f}, stock {stock_error:.4f}")
            assert own_error <= 2 * stock_error
            lead = reference[step].topk(2).values
            largest = max((logits[step] - reference[step]).abs().max(), (bfloat16[step] - reference[step]).abs().max())
            if lead[0] - lead[1] > 2 * largest:
                decided += 1
                assert logits[step].argmax() == reference[step].argmax() == bfloat16[step].argmax()
    assert decided > 0


MEMORY_RUN = """
import sys, torch, numpy as np
from idefics_cli.config import Dtype, Kernels, ModelSettings, Quantize
from idefics_cli.engine.checkpoint import open_full_shape, random_model
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.records import PreparedPage, Request

limit, quantize, rows, other = float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
settings = ModelSettings(dtype=Dtype.BFLOAT16, max_new_tokens=16, kernels=Kernels.ON, fixed_length=True,
                         quantize=Quantize(quantize), gpu_memory=limit, batch_size=rows)
checkpoint = open_full_shape(settings)
engine = Idefics2Engine(settings, checkpoint, random_model(checkpoint))
engine.batch_size
torch.cuda.empty_cache()
if other:  # what another program takes meanwhile
    left = int(limit * 1e9) - torch.cuda.memory_reserved()
    taken = torch.empty(max(0, left - int(other * 1e9)), dtype=torch.uint8, device="cuda")
rng = np.random.default_rng(0)
page = PreparedPage(tuple(rng.integers(0, 255, (5, 980, 756, 3), dtype=np.uint8)), "pillow", 0.0, 0.0)
requests = [Request(n, "What is the total?", (page,), (n,)) for n in range(40)]
answers = list(engine.answer(requests))
assert len(answers) == 40
print("rows", engine.batch_size, "failed", sum(a.failure is not None for a in answers),
      "halved", sum("batch halved" in a.warning for a in answers), "reserved", torch.cuda.max_memory_reserved() / 1e9)
"""


def memory_run(limit: float, quantize: str = "none", rows: int = 0, other: float = 0.0) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_RUN, str(limit), quantize, str(rows), str(other)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.split()
    print(limit, quantize, rows, other, done.stdout.strip())
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize(("limit", "quantize"), [(139.0, "none"), (40.0, "none"), (24.0, "none"), (16.0, "fp8")])
def test_auto_batch_size_stays_within_the_memory(limit: float, quantize: str) -> None:
    limit = min(limit, torch.cuda.mem_get_info()[1] / 1e9)
    found = memory_run(limit, quantize)
    assert (found["failed"], found["halved"]) == (0, 0)
    assert found["reserved"] <= limit


def test_a_batch_that_does_not_fit_is_halved_and_its_rows_say_so() -> None:
    """More rows than there is memory for, and memory that another program takes after the plan was made."""
    for found in (memory_run(19.5, rows=64), memory_run(30.0, other=0.7)):
        assert found["failed"] == 0
        assert found["halved"] > 0
