"""The operations in torch: any device, nothing compiled, and what the Triton kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.native.ops.base import AttentionMetadata, InputFormat, Rows, ScaledRows
from idefics_cli.engine.native.ops.groupwise import GroupedWeight
from idefics_cli.engine.native.ops.groupwise import dequantize as dequantize
from idefics_cli.engine.native.ops.torch_attention import attention_one_by_one, attention_padded

FLOAT8_MAX = 448.0  # of float8_e4m3fn
_FEW_ROWS = 64  # of a decoding step or a question


def fused_add_layer_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, out: InputFormat
) -> tuple[Tensor, Rows]:
    """See `Ops`."""
    hidden = hidden if residual is None else hidden + residual
    return hidden, _formatted(functional.layer_norm(hidden, (hidden.shape[-1],), weight, bias, eps), out)


def fused_add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: InputFormat
) -> tuple[Tensor, Rows]:
    """See `Ops`."""
    hidden = hidden if residual is None else hidden + residual
    wide = hidden.float()
    normed = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)
    return hidden, _formatted(normed, out)


def silu_and_mul(gate_up: Tensor, out: InputFormat) -> Rows:
    """See `Ops`."""
    gate, up = gate_up.chunk(2, -1)
    if gate.is_cpu and len(gate) <= _FEW_ROWS:
        # Row by row: threads would divide a wide tensor in the middle of rows, and the ends of their parts are computed
        # by another `exp`, so that a row of a decoding step would depend on its place.
        active = torch.cat([functional.silu(row) for row in torch.split(gate, 1)])
    else:
        active = functional.silu(gate)
    return _formatted(active * up, out)


def gelu(rows: Tensor, out: InputFormat) -> Rows:
    """See `Ops`."""
    return _formatted(functional.gelu(rows, approximate="tanh"), out)


def quantize(rows: Tensor) -> ScaledRows:
    """See `Ops`."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FLOAT8_MAX
    return ScaledRows((wide / scale).to(torch.float8_e4m3fn), scale)


def group_product(rows: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
    """See `Ops`."""
    return functional.linear(rows, dequantize(weight, rows.dtype), bias)


def rope_and_cache(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """See `Ops`."""
    kv_heads, dim = keys.shape[1:]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    cos, sin = cos[positions, None], sin[positions, None]
    rotated = qkv[:, : (heads + kv_heads) * dim].view(len(qkv), heads + kv_heads, dim).float()
    first, second = rotated.chunk(2, -1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(qkv.dtype)
    keys[slots] = rotated[:, heads:]
    values[slots] = qkv[:, (heads + kv_heads) * dim :].view(len(qkv), kv_heads, dim)
    return rotated[:, :heads].reshape(len(qkv), heads * dim)


def paged_attention(queries: Tensor, keys: Tensor, values: Tensor, metadata: AttentionMetadata, window: int) -> Tensor:
    """See `Ops`."""
    attention = attention_one_by_one if queries.is_cpu else attention_padded
    return attention(queries, keys, values, metadata, window)


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See `Ops`."""
    return functional.scaled_dot_product_attention(queries, keys, values)


def _formatted(rows: Tensor, out: InputFormat) -> Rows:
    return quantize(rows) if out is InputFormat.FP8 else rows
