"""Products with group-wise quantized weights in Triton: the packed weights are all that is read of a weight.

A row's result does not depend on how many rows there are: tiles have one shape, and a sum over the inputs is cut into
a number of parts that goes by the weight alone, which are added in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from idefics_cli.engine.native.ops.groupwise import GroupedWeight
from idefics_cli.engine.quantization import GROUP

_ROWS = 64  # of a tile: what is decoded together
_OUTPUTS = 64
_ENOUGH_TILES = 256  # outputs of fewer tiles leave a GPU idle: their inputs are cut into parts
_PARTS = 4


@triton.jit
def _group_product(
    rows, words, scales, zeros, bias, out, count, width, outputs, groups, groups_of_part,
    INT4: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    # One program: a tile of rows by outputs, over the groups of one part.
    tile, block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row, is_column = row < count, column < outputs
    BYTES: tl.constexpr = GROUP // 2 if INT4 else GROUP
    inputs = tl.arange(0, BYTES)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for group in range(part * groups_of_part, tl.minimum((part + 1) * groups_of_part, groups)):
        at = (group * outputs + column).to(tl.int64)
        word = tl.load(words + at[None, :] * BYTES + inputs[:, None], is_column[None, :], 0)
        first = group * GROUP + inputs
        x = tl.load(rows + row[:, None] * width + first[None, :], is_row[:, None] & (first < width)[None, :], 0.0)
        scale = tl.load(scales + at, is_column, 0.0).to(tl.float32)
        # Levels are whole numbers below 256: exact in every dtype.
        if INT4:
            zero = tl.load(zeros + at, is_column, 0).to(tl.int32)[None, :]
            second = first + BYTES
            y = tl.load(rows + row[:, None] * width + second[None, :], is_row[:, None] & (second < width)[None, :], 0.0)
            wide = word.to(tl.int32)
            part_sum = tl.dot(x, ((wide & 15) - zero).to(tl.float32).to(x.dtype), input_precision=PRECISION)
            part_sum = tl.dot(y, ((wide >> 4) - zero).to(tl.float32).to(x.dtype), part_sum, input_precision=PRECISION)
        else:
            part_sum = tl.dot(x, word.to(tl.float32).to(x.dtype), input_precision=PRECISION)
        total += part_sum * scale[None, :]
    if BIAS:
        total += tl.load(bias + column, is_column, 0.0).to(tl.float32)[None, :]
    to = part.to(tl.int64) * count * outputs + row[:, None] * outputs + column[None, :]
    tl.store(out + to, total.to(out.dtype.element_ty), is_row[:, None] & is_column[None, :])


@triton.jit
def _add_parts(parts, bias, out, size, outputs, PARTS: tl.constexpr, BIAS: tl.constexpr, SIZE: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = index < size
    total = tl.load(parts + index, inside, 0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * size + index, inside, 0.0)
    if BIAS:
        total += tl.load(bias + index % outputs, inside, 0.0).to(tl.float32)
    tl.store(out + index, total.to(out.dtype.element_ty), inside)


def group_product(rows: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
    """See `Ops`."""
    rows = rows.contiguous()
    count, outputs, groups = len(rows), weight.outputs, len(weight.words)
    blocks = triton.cdiv(outputs, _OUTPUTS)
    parts = 1 if blocks >= _ENOUGH_TILES else min(_PARTS, groups)
    out = rows.new_empty(count, outputs)
    sums = out if parts == 1 else torch.empty(parts, count, outputs, dtype=torch.float32, device=rows.device)
    zeros = weight.words if weight.zeros is None else weight.zeros
    has_bias = bias is not None
    _group_product[(triton.cdiv(count, _ROWS), blocks, parts)](
        rows,
        weight.words,
        weight.scales,
        zeros,
        bias if has_bias else rows,
        sums,
        count,
        weight.width,
        outputs,
        groups,
        triton.cdiv(groups, parts),
        INT4=weight.zeros is not None,
        BIAS=has_bias and parts == 1,
        PRECISION="ieee" if rows.dtype is torch.float32 else "tf32",
        GROUP=GROUP,
        ROWS=_ROWS,
        OUTPUTS=_OUTPUTS,
        num_warps=4,
        num_stages=2 if rows.dtype is torch.float32 else 3,
    )
    if parts > 1:
        size = count * outputs
        _add_parts[(triton.cdiv(size, 1024),)](
            sums, bias if has_bias else rows, out, size, outputs, PARTS=parts, BIAS=has_bias, SIZE=1024
        )
    return out


@triton.jit
def _dequantize(
    words, scales, zeros, out, width, outputs,
    INT4: tl.constexpr, GROUP: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    group, block = tl.program_id(0), tl.program_id(1)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    is_column = column < outputs
    BYTES: tl.constexpr = GROUP // 2 if INT4 else GROUP
    inputs = tl.arange(0, BYTES)
    at = (group * outputs + column).to(tl.int64)
    word = tl.load(words + at[:, None] * BYTES + inputs[None, :], is_column[:, None], 0).to(tl.int32)
    scale = tl.load(scales + at, is_column, 0.0).to(tl.float32)[:, None]
    first = group * GROUP + inputs
    to = out + column.to(tl.int64)[:, None] * width
    if INT4:
        zero = tl.load(zeros + at, is_column, 0).to(tl.int32)[:, None]
        second = first + BYTES
        low, high = ((word & 15) - zero).to(tl.float32), ((word >> 4) - zero).to(tl.float32)
        kind = out.dtype.element_ty
        tl.store(to + first[None, :], (low * scale).to(kind), is_column[:, None] & (first < width)[None, :])
        tl.store(to + second[None, :], (high * scale).to(kind), is_column[:, None] & (second < width)[None, :])
    else:
        dense = word.to(tl.float32) * scale
        tl.store(to + first[None, :], dense.to(out.dtype.element_ty), is_column[:, None] & (first < width)[None, :])


def dequantize(weight: GroupedWeight, dtype: torch.dtype) -> Tensor:
    """See `Ops`."""
    out = torch.empty(weight.outputs, weight.width, dtype=dtype, device=weight.words.device)
    _dequantize[(len(weight.words), triton.cdiv(weight.outputs, _OUTPUTS))](
        weight.words,
        weight.scales,
        weight.words if weight.zeros is None else weight.zeros,
        out,
        weight.width,
        weight.outputs,
        INT4=weight.zeros is not None,
        GROUP=GROUP,
        OUTPUTS=_OUTPUTS,
        num_warps=4,
    )
    return out
