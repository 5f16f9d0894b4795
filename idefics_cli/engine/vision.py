"""Encodes crops: pixels, vision tower, connector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.checkpoint import Normalization
from idefics_cli.records import Crop


@torch.inference_mode()
def encode_crops(model: Any, crops: Sequence[Crop], normalization: Normalization, at_once: int) -> list[Tensor]:
    """Return the latents of each crop, (latents, text width), in order.

    Crops of one shape go through the tower together, at most `at_once` of them and without padding: no mask is
    needed, and an encoding does not depend on its company.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, crop in enumerate(crops):
        by_shape.setdefault(crop.shape, []).append(index)
    encoded: dict[int, Tensor] = {}
    for indices in by_shape.values():
        for start in range(0, len(indices), at_once):
            some = indices[start : start + at_once]
            stacked = torch.from_numpy(np.stack([crops[index] for index in some]))
            latents = _encode(model, normalize(stacked.to(model.device), normalization, model.dtype))
            encoded.update(zip(some, latents, strict=True))
    return [encoded[index] for index in range(len(crops))]


def normalize(pixels: Tensor, normalization: Normalization, dtype: torch.dtype) -> Tensor:
    """Turn uint8 (n, height, width, 3) into normalized (n, 3, height, width)."""
    mean = torch.tensor(normalization.mean, device=pixels.device)
    std = torch.tensor(normalization.std, device=pixels.device)
    scaled = (pixels.float() * normalization.scale - mean) / std
    return scaled.permute(0, 3, 1, 2).to(dtype).contiguous()


def _encode(model: Any, pixels: Tensor) -> Tensor:
    """Encode (n, 3, height, width) to (n, latents, width); pixels beyond the last whole patch are dropped."""
    patch = model.config.vision_config.patch_size
    count, _, height, width = pixels.shape
    mask = torch.ones(count, height // patch, width // patch, dtype=torch.bool, device=pixels.device)
    hidden = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    latents: Tensor = model.model.connector(hidden, attention_mask=mask.view(count, -1))
    return latents
