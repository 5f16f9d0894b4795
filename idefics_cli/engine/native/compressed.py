"""Quantized weights as compressed-tensors stores them: what `prepare` writes, and the engine takes as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from idefics_cli.config import Quantize
from idefics_cli.engine.native.ops.base import ScaledRows
from idefics_cli.engine.native.ops.groupwise import GroupedWeight, dequantize, levels_of, pack
from idefics_cli.engine.quantization import GROUP

QuantizedWeight = GroupedWeight | ScaledRows
_OFFSET = 128  # int8 levels are stored from 0 on


def to_parts(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Return the tensors that stand for a weight whose inputs are whole groups, by the ends of their names."""
    if isinstance(weight, ScaledRows):
        return {"weight": weight.values, "weight_scale": weight.scales}
    levels = levels_of(weight).flatten(1)
    is_int4 = weight.zeros is not None
    parts = {
        "weight_packed": _to_words(levels if is_int4 else levels.int() + _OFFSET, 4 if is_int4 else 8),
        "weight_scale": weight.scales.t().contiguous(),
        "weight_shape": torch.tensor([weight.outputs, weight.width]),
    }
    if weight.zeros is not None:
        zeros = torch.nn.functional.pad(weight.zeros, (0, -weight.outputs % 8))
        parts["weight_zero_point"] = _to_words(zeros, 4).t().contiguous()
    return parts


def from_parts(kind: Quantize, read: Callable[[str], Tensor]) -> QuantizedWeight:
    """Return the weight for which tensors stand, read by the ends of their names."""
    if kind is Quantize.FP8:
        return ScaledRows(read("weight"), read("weight_scale"))
    words, scales = read("weight_packed"), read("weight_scale")
    is_int4 = kind is Quantize.INT4
    levels = _from_words(words, 4 if is_int4 else 8)
    levels = levels.to(torch.uint8) if is_int4 else (levels - _OFFSET).to(torch.int8)
    zeros = _from_words(read("weight_zero_point").t(), 4).t()[: len(scales)].to(torch.uint8) if is_int4 else None
    return pack(levels.view(len(scales), -1, GROUP), scales, zeros, levels.shape[1])


def dense_weight(weight: QuantizedWeight) -> Tensor:
    """Return a weight in float32."""
    if isinstance(weight, ScaledRows):
        dense: Tensor = weight.values.float() * weight.scales
        return dense
    return dequantize(weight, torch.float32)


def _to_words(levels: Tensor, bits: int) -> Tensor:
    """Pack levels (rows, columns) from 0 on into int32 words, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=levels.device)
    words: Tensor = levels.int().view(len(levels), -1, len(shifts)) << shifts
    return words.sum(-1, dtype=torch.int32)


def _from_words(words: Tensor, bits: int) -> Tensor:
    """Take int32 words (rows, words) apart: int32 levels (rows, columns)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    levels: Tensor = (words[..., None] >> shifts) & (2**bits - 1)
    return levels.flatten(1)
