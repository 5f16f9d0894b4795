from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idefics_cli.config import ModelSettings
from idefics_cli.engine import plain
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.vision import Vision, normalize

CPU = torch.device("cpu")


def draw(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(490, 378), (300, 200), (203, 490)])
def test_encodings_are_the_stock_models_alone_and_together(
    tiny_settings: ModelSettings, height: int, width: int
) -> None:
    checkpoint = open_checkpoint(tiny_settings)
    model = load_model(checkpoint)
    crops = draw(3, height, width)
    pixels = torch.from_numpy(crops / 255.0 * 2 - 1).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        mask = torch.ones(1, 3, height, width, dtype=torch.long)
        stock = torch.cat(list(model.get_image_features(pixels[None], mask).pooler_output)).view(3, 64, 256)
    vision = Vision(model, checkpoint.normalization, CPU)
    together = vision.encode(torch.from_numpy(crops), plain, projected_at_once=1000)
    assert torch.allclose(together, stock, atol=1e-4)
    alone = vision.encode(torch.from_numpy(crops[1:2]), plain, projected_at_once=100)
    assert torch.allclose(alone[0], together[1], atol=1e-4)


def test_fp8_is_near(tiny_settings: ModelSettings) -> None:
    checkpoint = open_checkpoint(tiny_settings)
    model = load_model(checkpoint)
    crops = torch.from_numpy(draw(2, 196, 196))
    exact = Vision(copy.deepcopy(model), checkpoint.normalization, CPU).encode(crops, plain, projected_at_once=1000)
    found = Vision(model, checkpoint.normalization, CPU, fp8=True).encode(crops, plain, projected_at_once=1000)
    assert 0 < (found - exact).norm() / exact.norm() < 0.3


def test_normalize_is_the_stock_processors_arithmetic(tiny_settings: ModelSettings) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    found = normalize(values, open_checkpoint(tiny_settings).normalization, torch.float32)
    assert found.shape == (1, 3, 16, 16)
    assert torch.allclose(found[0, 0].flatten(), torch.arange(256) / 255 * 2 - 1, atol=1e-6)
