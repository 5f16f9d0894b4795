"""Weights as integer levels with a scale for each group of inputs: w = (level - zero) * scale.

int4 levels are 0 to 15 with a zero for each group, as AWQ has them; int8 levels are -127 to 127 and need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.engine.quantization import GROUP

_NUMBERS_AT_ONCE = 1 << 22  # so that what is computed in float32 on the way takes little memory beside the weight
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a group's range: what lies outside is clipped, the rest is finer
_LEAST_SCALE = 6e-8  # of float16


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A weight (out, width), packed for kernels that read the tile of a group and some outputs at once."""

    words: Tensor
    """int8 (groups, out, 128); of int4 uint8 (groups, out, 64), inputs 0 to 63 of a group in the low halves."""
    scales: Tensor
    """float16 (groups, out)."""
    zeros: Tensor | None
    """uint8 (groups, out); None for int8."""
    width: int
    """Inputs; the levels of the last group beyond it stand for nothing."""

    @property
    def outputs(self) -> int:
        """Outputs of the product."""
        return self.words.shape[1]


def quantize(weight: Tensor, bits: int) -> GroupedWeight:
    """Quantize a weight (out, width) of any float dtype to 4 or 8 bits."""
    parts = []
    for rows in torch.split(weight, _outputs_at_once(weight.shape[1])):
        padded = torch.nn.functional.pad(rows.float(), (0, -weight.shape[1] % GROUP))
        groups = padded.view(len(rows), -1, GROUP)
        levels, scales, zeros = _int4_levels(groups) if bits == 4 else _int8_levels(groups)
        parts.append(pack(levels, scales, zeros, weight.shape[1]))
    return join(parts)


def pack(levels: Tensor, scales: Tensor, zeros: Tensor | None, width: int) -> GroupedWeight:
    """Pack levels (out, groups, 128), uint8 or int8, with scales and zeros (out, groups)."""
    words = levels.transpose(0, 1)
    if zeros is not None:
        words = words[..., : GROUP // 2] | words[..., GROUP // 2 :] << 4
        zeros = zeros.t().contiguous()
    return GroupedWeight(words.contiguous(), scales.t().to(torch.float16).contiguous(), zeros, width)


def levels_of(weight: GroupedWeight) -> Tensor:
    """Return the levels (out, groups, 128), uint8 or int8."""
    words = weight.words
    if weight.zeros is not None:
        words = torch.cat((words & 15, words >> 4), -1)
    return words.transpose(0, 1)


def join(parts: Sequence[GroupedWeight]) -> GroupedWeight:
    """Put the outputs of weights of the same inputs one after another."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return GroupedWeight(
        torch.cat([part.words for part in parts], 1),
        torch.cat([part.scales for part in parts], 1),
        torch.cat(zeros, 1) if zeros else None,
        parts[0].width,
    )


def dequantize(weight: GroupedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight (out, width): computed in float32, then rounded to the dtype."""
    dense = torch.empty(weight.outputs, weight.width, dtype=dtype, device=weight.words.device)
    step = _outputs_at_once(weight.width)
    for start in range(0, weight.outputs, step):
        some = slice(start, start + step)
        zeros = None if weight.zeros is None else weight.zeros[:, some]
        part = GroupedWeight(weight.words[:, some], weight.scales[:, some], zeros, weight.width)
        levels = levels_of(part).float()
        if zeros is not None:
            levels = levels - zeros.t().float()[..., None]
        dense[some] = (levels * part.scales.t().float()[..., None]).flatten(1)[:, : weight.width]
    return dense


def _outputs_at_once(width: int) -> int:
    return max(1, _NUMBERS_AT_ONCE // width)


def _int8_levels(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    """Return levels, scales and no zeros of float32 (out, groups, 128)."""
    scales = (groups.abs().amax(-1) / 127).clamp(min=_LEAST_SCALE).half()
    levels = (groups / scales.float()[..., None]).round().clamp(-127, 127)
    return levels.to(torch.int8), scales, None


def _int4_levels(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return levels, scales and zeros of float32 (out, groups, 128): of some ranges the one with the least error."""
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    least = torch.full_like(low, torch.inf)
    levels, scales, zeros = torch.zeros_like(groups), low.half(), torch.zeros_like(low)
    for shrink in _SHRINKS:
        scale = ((high - low) * (shrink / 15)).clamp(min=_LEAST_SCALE).half()
        wide = scale.float()
        zero = (-low * shrink / wide).round().clamp(0, 15)
        level = ((groups / wide[..., None]).round() + zero[..., None]).clamp(0, 15)
        error = ((level - zero[..., None]) * wide[..., None] - groups).square().sum(-1)
        is_better = error < least
        least = torch.where(is_better, error, least)
        levels = torch.where(is_better[..., None], level, levels)
        scales, zeros = torch.where(is_better, scale, scales), torch.where(is_better, zero, zeros)
    return levels.to(torch.uint8), scales, zeros.to(torch.uint8)
