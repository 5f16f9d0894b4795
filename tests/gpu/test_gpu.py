"""The engine on a CUDA device: the same answers as on the CPU."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys

import pytest
import torch

from idefics_cli.config import Device, Dtype, Kernels, ModelSettings
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.stock import StockEngine
from idefics_cli.records import Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_float32_answers_are_those_of_stock_generate_and_of_the_cpu(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    some = sample_requests[:40]
    cuda = dataclasses.replace(tiny_settings, device=Device.CUDA)
    found = {a.number: a.text for a in Idefics2Engine(cuda).answer(some)}
    assert found == {a.number: a.text for a in StockEngine(cuda).answer(some)}
    assert found == {a.number: a.text for a in Idefics2Engine(tiny_settings).answer(some)}


def test_kernels_and_graphs_leave_float32_answers_as_they_are(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    """All 200 questions, in batches whose rows end at different steps and are replaced."""
    cuda = dataclasses.replace(tiny_settings, device=Device.CUDA)
    expected = {
        a.number: a.text for a in Idefics2Engine(dataclasses.replace(cuda, kernels=Kernels.OFF)).answer(sample_requests)
    }
    for rows in (1, 3, 16, 64):
        settings = dataclasses.replace(cuda, kernels=Kernels.ON, batch_size=rows)
        shuffled = sample_requests[:]
        random.Random(rows).shuffle(shuffled)
        engine = Idefics2Engine(settings)
        assert {a.number: a.text for a in engine.answer(shuffled)} == expected
        assert engine.runner._decoder._graphs


def test_bfloat16_is_the_default(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    engine = Idefics2Engine(dataclasses.replace(tiny_settings, device=Device.AUTO, dtype=Dtype.AUTO))
    assert engine.runner._text.dtype is torch.bfloat16
    answers = list(engine.answer(sample_requests[:8]))
    assert all(answer.failure is None and 0 < answer.confidence <= 1 for answer in answers)


POISONED = """
import torch
from idefics_cli.config import ModelSettings
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.errors import ModelError
from idefics_cli.records import PreparedPage, Request
import numpy as np

page = PreparedPage((np.full((490, 378, 3), 255, np.uint8),), "pillow", 0.0, 0.0)
engine = Idefics2Engine(ModelSettings("tiny"))
assert len(list(engine.answer([Request(0, "What is the date?", (page,), (0,))]))) == 1
torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # out of bounds: an assertion on the device
try:
    list(engine.answer([Request(1, "What is the date?", (page,), (1,))]))
except ModelError as error:
    print("exit code", error.exit_code)
"""


def test_a_poisoned_context_is_a_model_error() -> None:
    done = subprocess.run([sys.executable, "-c", POISONED], capture_output=True, text=True, timeout=120)
    assert "exit code 4" in done.stdout, done.stderr[-2000:]
