"""The engine on a CUDA device: the same answers as on the CPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings
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


def test_bfloat16_is_the_default(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    engine = Idefics2Engine(dataclasses.replace(tiny_settings, device=Device.AUTO, dtype=Dtype.AUTO))
    assert engine.model.dtype is torch.bfloat16
    answers = list(engine.answer(sample_requests[:8]))
    assert all(answer.failure is None and 0 < answer.confidence <= 1 for answer in answers)
