from __future__ import annotations

import numpy as np
import pytest
import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.vision import encode_crops, normalize
from idefics_cli.records import Crop


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    rng = np.random.default_rng(0)
    shapes = [(490, 378), (300, 200), (490, 378), (203, 490), (300, 200)]
    return [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_crops_come_back_in_order_and_do_not_depend_on_their_company(
    tiny_settings: ModelSettings, crops: list[Crop]
) -> None:
    checkpoint = open_checkpoint(tiny_settings)
    model = load_model(checkpoint)
    together = encode_crops(model, crops, checkpoint.normalization, at_once=8)
    assert [tuple(latents.shape) for latents in together] == [(64, 256)] * 5
    for crop, latents in zip(crops, together, strict=True):
        (alone,) = encode_crops(model, [crop], checkpoint.normalization, at_once=1)
        assert torch.allclose(alone, latents, atol=1e-4)


def test_encodings_are_the_stock_models(tiny_settings: ModelSettings, crops: list[Crop]) -> None:
    checkpoint = open_checkpoint(tiny_settings)
    model = load_model(checkpoint)
    pixels = torch.zeros(1, 5, 3, 490, 490)
    mask = torch.zeros(1, 5, 490, 490, dtype=torch.long)
    for index, crop in enumerate(crops):
        height, width = crop.shape[:2]
        pixels[0, index, :, :height, :width] = torch.from_numpy(crop / 255.0 * 2 - 1).permute(2, 0, 1)
        mask[0, index, :height, :width] = 1
    with torch.inference_mode():
        stock = torch.cat(list(model.get_image_features(pixels, mask).pooler_output)).view(5, 64, 256)
    ours = torch.stack(encode_crops(model, crops, checkpoint.normalization, at_once=2))
    assert torch.allclose(ours, stock, atol=1e-4)


def test_normalize_is_the_stock_processors_arithmetic(tiny_settings: ModelSettings) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    found = normalize(values, open_checkpoint(tiny_settings).normalization, torch.float32)
    assert found.shape == (1, 3, 16, 16)
    assert torch.allclose(found[0, 0].flatten(), torch.arange(256) / 255 * 2 - 1, atol=1e-6)
