"""Packed rows beside the stock text model, one row at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from idefics_cli.config import ModelSettings
from idefics_cli.engine import plain
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.text import Cache, Span, Text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_settings: ModelSettings) -> Any:
    return load_model(open_checkpoint(tiny_settings))


@torch.inference_mode()
def stock(model: Any, embeds: Tensor) -> Tensor:
    states: Tensor = model.model.text_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
    return states


@torch.inference_mode()
def test_rows_packed_together_are_as_each_alone(model: Any) -> None:
    torch.manual_seed(0)
    text = Text(model, CPU)
    cache = Cache(text, 200)
    rows = [torch.randn(length, 256) for length in (7, 30, 1)]
    spans = [Span(7, own_start=100), Span(30, own_start=3), Span(1, own_start=50)]
    found = text.prefill(torch.cat(rows), spans, cache, plain)
    for state, row in zip(found, rows, strict=True):
        assert torch.allclose(state, stock(model, row), atol=1e-4)
    logits = text.logits(found, plain)
    assert logits.shape == (3, 132)
    assert torch.allclose(logits, model.lm_head(found), atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 12])
def test_a_shared_prefix_is_computed_once_and_read_by_many(model: Any, window: int | None) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    if window:
        model.config.text_config.sliding_window = model.model.text_model.config.sliding_window = window
        model.model.text_model.config.layer_types = ["sliding_attention"] * 6
    text = Text(model, CPU)
    cache = Cache(text, 100)
    prefix, owns = torch.randn(20, 256), [torch.randn(length, 256) for length in (4, 9)]
    text.prefill(prefix.clone(), [Span(20, own_start=40)], cache, plain)
    spans = [
        Span(len(own), own_start=start, prefix_start=40, prefix_length=20)
        for own, start in zip(owns, (1, 70), strict=True)
    ]
    found = text.prefill(torch.cat(owns), spans, cache, plain)
    for state, own in zip(found, owns, strict=True):
        assert torch.allclose(state, stock(model, torch.cat((prefix, own))), atol=1e-4)


def test_fp8_is_near_and_frees_the_weights(model: Any) -> None:
    torch.manual_seed(0)
    row = torch.randn(30, 256)
    expected = stock(model, row)
    smaller = copy.deepcopy(model)
    text = Text(smaller, CPU, fp8=True)
    found = text.prefill(row.clone(), [Span(30, own_start=1)], Cache(text, 64), plain)[0]
    assert 0 < (found - expected).norm() / expected.norm() < 0.2
    assert smaller.model.text_model.layers[0].mlp.up_proj.weight.numel() == 0
