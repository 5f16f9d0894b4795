"""Packed segments beside transformers' text model, one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from idefics_cli.config import Quantize
from idefics_cli.engine.native.models.decoder import Decoder, KVCache, Segment
from idefics_cli.engine.native.ops import torch_ops
from tests.small_checkpoints import CPU, packed_segments, save_checkpoint, settings_of, weights_of


@pytest.fixture(scope="module", params=[None, 12], ids=["all", "window"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"), generation={}, text={"sliding_window": request.param})


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def decoder(folder: Path, **changes: Any) -> tuple[Decoder, KVCache]:
    weights, family = weights_of(settings_of(folder, **changes))
    made = Decoder(weights, family.config.text, tie_word_embeddings=False)
    return made, KVCache(family.config.text, 200, torch.float32, CPU)


@torch.inference_mode()
def reference(model: Any, embeds: Tensor) -> Tensor:
    states: Tensor = model.model.text_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
    return states


@torch.inference_mode()
def last_states(
    made: Decoder, cache: KVCache, parts: list[Tensor], segments: list[Segment], padded_to: int = 0
) -> Tensor:
    packed = packed_segments(segments, padded_to=padded_to)
    hidden = torch.cat([*parts, torch.zeros(max(0, padded_to - sum(map(len, parts))), parts[0].shape[1])])
    states = made.forward(hidden, packed.positions, packed.slots, packed.metadata, cache, torch_ops)
    return states[packed.last]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("padded_to", [0, 64])
def test_segments_packed_together_are_as_each_alone(folder: Path, model: Any, padded_to: int) -> None:
    torch.manual_seed(0)
    made, cache = decoder(folder)
    parts = [torch.randn(length, 32) for length in (7, 30, 1)]
    segments = [Segment(7, suffix_start=100), Segment(30, suffix_start=3), Segment(1, suffix_start=50)]
    found = last_states(made, cache, parts, segments, padded_to)
    for state, part in zip(found, parts, strict=True):
        assert error(state, reference(model, part)) < 1e-5
    with torch.inference_mode():
        logits = made.logits(found, torch_ops)
        assert logits.shape == (3, 136)  # rows begin at aligned addresses
        assert error(logits[:, :132], model.lm_head(found)) < 1e-5
        assert torch.all(logits[:, 132:] == -torch.inf)


def test_a_shared_prefix_is_computed_once_and_read_by_many(folder: Path, model: Any) -> None:
    torch.manual_seed(0)
    made, cache = decoder(folder)
    prefix, suffixes = torch.randn(20, 32), [torch.randn(length, 32) for length in (4, 9)]
    last_states(made, cache, [prefix.clone()], [Segment(20, suffix_start=40)])
    segments = [
        Segment(len(suffix), suffix_start=start, prefix_start=40, prefix_length=20)
        for suffix, start in zip(suffixes, (1, 70), strict=True)
    ]
    found = last_states(made, cache, [suffix.clone() for suffix in suffixes], segments)
    for state, suffix in zip(found, suffixes, strict=True):
        assert error(state, reference(model, torch.cat((prefix, suffix)))) < 1e-5


def test_a_prompt_may_come_in_pieces(folder: Path, model: Any) -> None:
    torch.manual_seed(0)
    made, cache = decoder(folder)
    prompt = torch.randn(25, 32)
    last_states(made, cache, [prompt[:16].clone()], [Segment(16, suffix_start=10)])
    found = last_states(made, cache, [prompt[16:].clone()], [Segment(9, suffix_start=10, suffix_done=16)])
    assert error(found[0], reference(model, prompt)) < 1e-5


def test_fp8_is_near(folder: Path, model: Any) -> None:
    torch.manual_seed(0)
    made, cache = decoder(folder, quantize=Quantize.FP8)
    prompt = torch.randn(30, 32)
    found = last_states(made, cache, [prompt.clone()], [Segment(30, suffix_start=1)])
    assert 0 < error(found[0], reference(model, prompt)) < 0.4
