"""Unpacks AWQ words: integer levels of 4 bits, with a zero and a float16 scale for each group of inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics_cli.engine.native.ops.groupwise import GroupedWeight, pack
from idefics_cli.engine.quantization import GROUP

# Outputs 0 to 7 of a word stand at these bits: the order in which AWQ's own kernels take them apart.
_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)


def dense_weight(words: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """Return float32 (out, in).

    Args:
        words: int32 (in, out / 8).
        zeros: int32 (groups, out / 8).
        scales: float16 (groups, out).

    """
    levels, group_zeros = _levels(words, zeros)
    dense = (levels.float() - group_zeros.float()[..., None]) * scales.t().float()[..., None]
    return dense.flatten(1).contiguous()  # the words are transposed, and products take rows


def grouped_weight(words: Tensor, zeros: Tensor, scales: Tensor) -> GroupedWeight | None:
    """Return the same weight with its levels as they are; None where its groups are others than the engine's."""
    if len(words) != len(zeros) * GROUP:
        return None
    levels, group_zeros = _levels(words, zeros)
    return pack(levels, scales.t(), group_zeros, len(words))


def _levels(words: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Return levels (out, groups, inputs of a group) and zeros (out, groups), uint8."""
    levels = _nibbles(words).t()
    return levels.reshape(len(levels), len(zeros), -1), _nibbles(zeros).t()


def _nibbles(words: Tensor) -> Tensor:
    """Return uint8 (rows, 8 * words) of int32 (rows, words)."""
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)
