"""Numbers of rows at which products give each row the same bits.

A library chooses its kernel by the shape of a product, and kernels add up in different orders. Which ones do depends on
the device, the dtype and the widths: it is tried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.ops.linear import Linear

_COMPARED, _MOST_DRAWS = 1 << 20, 16
"""Outputs of a layer that are compared for each number of rows. A sum in another order differs by about the last bit of
float32: one of some 30,000 is then rounded to another bfloat16, whose last bit is 2^15 times as large."""


@torch.inference_mode()
def equal_row_counts(layers: Iterable[Linear], counts: Sequence[int], ops: Ops) -> tuple[int, ...]:
    """Return those of some numbers of rows at which products are, to the bit, those of the largest; ascending.

    Args:
        layers: that are asked; of those with weights of one shape one is.
        counts: of rows.
        ops: torch or Triton.

    """
    *smaller, largest = sorted(counts)
    by_shape = {(type(layer), layer.weight.shape, layer.dtype): layer for layer in layers}
    for layer in by_shape.values():
        if smaller:
            differs = _differs(layer, smaller, largest, ops).tolist()
            smaller = [count for count, other in zip(smaller, differs, strict=True) if not other]
    return (*smaller, largest)


def _differs(layer: Linear, counts: Sequence[int], largest: int, ops: Ops) -> Tensor:
    """Return for each number of rows whether a row's product is another one than at the largest: bool (counts,)."""
    device = layer.weight.device
    generator = torch.Generator(device).manual_seed(0)
    differs = torch.zeros(len(counts), dtype=torch.bool, device=device)
    for _ in range(max(1, min(_MOST_DRAWS, _COMPARED // (counts[0] * layer.outputs)))):
        rows = torch.randn(largest, layer.inputs, generator=generator, device=device).to(layer.dtype)
        expected = layer(rows, ops)
        differs |= torch.stack([(layer(rows[:count], ops) != expected[:count]).any() for count in counts])
    return differs
