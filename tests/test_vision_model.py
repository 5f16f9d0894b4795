from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine.families.base import Normalization
from idefics_cli.engine.native.models.siglip import VisionEncoder, normalize, position_buckets
from idefics_cli.engine.native.models.vision import vision_encoder
from idefics_cli.engine.native.ops import torch_ops
from tests.small_checkpoints import save_checkpoint, settings_of, weights_of


def draw(count: int, height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8))


def encoder(settings: ModelSettings) -> VisionEncoder:
    weights, family = weights_of(settings)
    with torch.inference_mode():
        return vision_encoder(weights, family.config, family.normalization)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"), generation={}, perceiver={"resampler_depth": 2})


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("height", "width"), [(490, 378), (300, 200), (203, 490), (196, 196)])
def test_features_are_those_of_transformers(height: int, width: int, small: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(small, dtype=torch.float32).eval()
    crops = draw(3, height, width)
    pixels = (crops.double() / 255 * 2 - 1).permute(0, 3, 1, 2).float()[None]
    with torch.inference_mode():
        mask = torch.ones(1, 3, height, width, dtype=torch.long)
        expected = torch.cat(list(model.get_image_features(pixels, mask).pooler_output)).view(3, 4, 32)
    vision = encoder(settings_of(small))
    together = vision.encode(crops, torch_ops, max_projected_patches=1000)
    assert error(together, expected) < 1e-5
    alone = vision.encode(crops[1:2], torch_ops, max_projected_patches=100)
    assert error(alone[0], together[1]) < 1e-5


def test_fp8_is_near(small: Path) -> None:
    crops = draw(2, 196, 196)
    exact = encoder(settings_of(small)).encode(crops, torch_ops, max_projected_patches=1000)
    found = encoder(settings_of(small, quantize=Quantize.FP8)).encode(crops, torch_ops, max_projected_patches=1000)
    assert 0 < error(found, exact) < 0.3


def test_normalize_is_the_arithmetic_of_transformers_processor() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    found = normalize(values, Normalization(1 / 255, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)), torch.float32)
    assert found.shape == (1, 3, 16, 16)
    steps = torch.arange(256, dtype=torch.float64)
    for channel, (mean, std) in enumerate(((0.5, 0.5), (0.4, 0.6), (0.3, 0.7))):
        assert error(found[0, channel].flatten().double(), (steps / 255 - mean) / std) < 1e-6


EXCEPTIONS: dict[int, dict[int, int]] = {
    25: {15: 41},
    49: {14: 19, 35: 49},
    50: {15: 20, 30: 41},
    55: {11: 13, 22: 27, 33: 41},
    54: {},
    70: {},
    35: {},
}
"""In a grid of 70: where float32 fractions fall short of a boundary that they meet, by patches an edge."""


@pytest.mark.parametrize("count", EXCEPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_positions_as_the_published_checkpoints_were_trained_with(count: int, dtype: torch.dtype) -> None:
    expected = [EXCEPTIONS[count].get(index, index * 70 // count) for index in range(count)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as where a model is made in half precision
    try:
        assert position_buckets(count, 70).tolist() == expected
    finally:
        torch.set_default_dtype(before)


def test_positions_as_numbers() -> None:
    assert position_buckets(25, 70).tolist() == [
        0, 2, 5, 8, 11, 14, 16, 19, 22, 25, 28, 30, 33, 36, 39, 41, 44, 47, 50, 53, 56, 58, 61, 64, 67
    ]  # fmt: skip
    assert position_buckets(49, 70).tolist() == [
        0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 14, 15, 17, 18, 19, 21, 22, 24, 25, 27, 28, 30, 31, 32, 34, 35, 37, 38, 40,
        41, 42, 44, 45, 47, 48, 49, 51, 52, 54, 55, 57, 58, 60, 61, 62, 64, 65, 67, 68
    ]  # fmt: skip
    assert position_buckets(54, 70).tolist() == [
        0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24, 25, 27, 28, 29, 31, 32, 33, 35, 36, 37,
        38, 40, 41, 42, 44, 45, 46, 47, 49, 50, 51, 53, 54, 55, 57, 58, 59, 60, 62, 63, 64, 66, 67, 68
    ]  # fmt: skip
    assert position_buckets(70, 70).tolist() == list(range(70))
    assert position_buckets(14, 35).tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32]


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="torch's half-precision attention fails where it is set"
)
@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_positions_of_a_model_in_half_precision_are_those_of_float32(dtype: Dtype, small: Path) -> None:
    """Wrong positions would change far more than rounding does."""
    crops = draw(1, 14 * 27, 14 * 33)
    exact = encoder(settings_of(small)).encode(crops, torch_ops, max_projected_patches=1000)
    found = encoder(settings_of(small, dtype=dtype)).encode(crops, torch_ops, max_projected_patches=1000)
    assert error(found.float(), exact) < 0.05
