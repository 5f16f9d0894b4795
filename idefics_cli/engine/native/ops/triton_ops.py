"""The operations as Triton kernels: one pass over memory each. `torch_ops` says what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from idefics_cli.engine.native.ops.base import InputFormat, Rows, ScaledRows
from idefics_cli.engine.native.ops.triton_attention import paged_attention as paged_attention
from idefics_cli.engine.native.ops.triton_attention import rope_and_cache as rope_and_cache
from idefics_cli.engine.native.ops.triton_attention import sdpa as sdpa
from idefics_cli.engine.native.ops.triton_linear import dequantize as dequantize
from idefics_cli.engine.native.ops.triton_linear import group_product as group_product

_BLOCK = 1024


@triton.jit
def _store_row(values, out, scales, row, columns, inside, width, SCALED: tl.constexpr):
    """Store a float32 row in the format of `out`, or quantized with its scale."""
    if SCALED:
        scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / 448.0  # the largest float8_e4m3fn
        tl.store(scales + row, scale)
        values = values / scale
    tl.store(out + row * width + columns, values.to(out.dtype.element_ty), inside)


def _new_rows(rows: Tensor, width: int, out: InputFormat) -> tuple[Tensor, Tensor, Rows]:
    """Allocate rows of a format: values, scales (any tensor where there are none), and both as they are returned."""
    if out is InputFormat.PLAIN:
        values = rows.new_empty(len(rows), width)
        return values, values, values
    values = torch.empty(len(rows), width, dtype=torch.float8_e4m3fn, device=rows.device)
    scales = torch.empty(len(rows), 1, dtype=torch.float32, device=rows.device)
    return values, scales, ScaledRows(values, scales)


@triton.jit
def _add_norm(
    hidden, residual, weight, bias, normed, scales, width, eps,
    ADD: tl.constexpr, BIAS: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    start = index * width
    columns = tl.arange(0, SIZE)
    inside = columns < width
    row = tl.load(hidden + start + columns, inside, 0.0)
    if ADD:
        row = (row.to(tl.float32) + tl.load(residual + start + columns, inside, 0.0).to(tl.float32)).to(row.dtype)
        tl.store(hidden + start + columns, row, inside)
    wide = row.to(tl.float32)
    if BIAS:
        wide = tl.where(inside, wide - tl.sum(wide, 0) / width, 0.0)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scale = tl.load(weight + columns, inside, 0.0).to(tl.float32)
    if BIAS:
        wide = wide * scale + tl.load(bias + columns, inside, 0.0).to(tl.float32)
    else:
        wide = wide.to(row.dtype).to(tl.float32) * scale
    _store_row(wide, normed, scales, index, columns, inside, width, SCALED)


def fused_add_layer_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, out: InputFormat
) -> tuple[Tensor, Rows]:
    """See `Ops`; the sum takes the place of `hidden`."""
    return _fused_add_norm(hidden, residual, weight, bias, eps, out)


def fused_add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: InputFormat
) -> tuple[Tensor, Rows]:
    """See `Ops`; the sum takes the place of `hidden`."""
    return _fused_add_norm(hidden, residual, weight, None, eps, out)


def _fused_add_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, out: InputFormat
) -> tuple[Tensor, Rows]:
    width = hidden.shape[1]
    normed, scales, rows = _new_rows(hidden, width, out)
    _add_norm[(len(hidden),)](
        hidden,
        hidden if residual is None else residual,
        weight,
        weight if bias is None else bias,
        normed,
        scales,
        width,
        eps,
        ADD=residual is not None,
        BIAS=bias is not None,
        SCALED=out is InputFormat.FP8,
        SIZE=triton.next_power_of_2(width),
        num_warps=8 if width > 2048 else 4,
    )
    return hidden, rows


@triton.jit
def _activate(rows, out, scales, width, GATED: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = columns < width
    if GATED:
        gate = tl.load(rows + row * 2 * width + columns, inside, 0.0)
        up = tl.load(rows + row * 2 * width + width + columns, inside, 0.0)
        wide = gate.to(tl.float32)
        active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    else:
        wide = tl.load(rows + row * width + columns, inside, 0.0).to(tl.float32)
        inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)  # sqrt(2 / pi): GELU's tanh form
        active = wide / (1.0 + tl.exp(-2.0 * inner))
    _store_row(active, out, scales, row, columns, inside, width, SCALED)


def _activated(rows: Tensor, width: int, out: InputFormat, *, gated: bool) -> Rows:
    values, scales, active = _new_rows(rows, width, out)
    is_scaled = out is InputFormat.FP8
    size = triton.next_power_of_2(width) if is_scaled else _BLOCK  # a scale needs the whole row
    _activate[(len(rows), triton.cdiv(width, size))](
        rows, values, scales, width, GATED=gated, SCALED=is_scaled, SIZE=size, num_warps=8 if size > 4096 else 4
    )
    return active


def silu_and_mul(gate_up: Tensor, out: InputFormat) -> Rows:
    """See `Ops`."""
    return _activated(gate_up, gate_up.shape[1] // 2, out, gated=True)


def gelu(rows: Tensor, out: InputFormat) -> Rows:
    """See `Ops`."""
    return _activated(rows, rows.shape[1], out, gated=False)


@triton.jit
def _quantize(rows, out, scales, width, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SIZE)
    inside = columns < width
    values = tl.load(rows + row * width + columns, inside, 0.0).to(tl.float32)
    _store_row(values, out, scales, row, columns, inside, width, True)


def quantize(rows: Tensor) -> ScaledRows:
    """See `Ops`."""
    width = rows.shape[1]
    out, scales, result = _new_rows(rows, width, InputFormat.FP8)
    warps = 8 if width > 4096 else 4
    _quantize[(len(rows),)](rows.contiguous(), out, scales, width, SIZE=triton.next_power_of_2(width), num_warps=warps)
    assert isinstance(result, ScaledRows)
    return result
