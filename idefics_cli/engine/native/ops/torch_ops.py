"""The operations in torch: any device, nothing compiled, and what the Triton kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.native.ops.base import AttentionMetadata, InputFormat, Rows, ScaledRows
from idefics_cli.engine.native.ops.groupwise import GroupedWeight
from idefics_cli.engine.native.ops.groupwise import dequantize as dequantize

FLOAT8_MAX = 448.0  # of float8_e4m3fn
_CONTEXT_BLOCK = 512  # keys that torch's attention on the CPU takes at once


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
    return _formatted(functional.silu(gate) * up, out)


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
    """See `Ops`; segments are padded to the longest query, and to whole blocks of the longest context.

    A context that ends within a block is summed up in another order by some of torch's kernels.
    """
    dim = keys.shape[2]
    device = queries.device
    prefix, suffix = metadata.prefix_length[:, None].long(), metadata.suffix_length[:, None].long()
    # 1. slots of the context: (segments, longest context)
    blocks = -(-int((prefix + suffix).max()) // _CONTEXT_BLOCK)
    index = torch.arange(blocks * _CONTEXT_BLOCK, device=device)[None]
    slot = torch.where(
        index < prefix, metadata.prefix_start[:, None] + index, metadata.suffix_start[:, None] + index - prefix
    )
    slot = torch.where(index < prefix + suffix, slot, metadata.suffix_start[:, None])
    # 2. packed index and position of the queries: (segments, longest query); two at least, since torch splits the
    # context of a single query among the threads of a CPU, by the segment's place in the batch
    step = torch.arange(max(2, metadata.max_query_length), device=device)[None]
    is_query = step < metadata.query_length[:, None]
    packed = metadata.query_start[:, None] + torch.where(is_query, step, 0)
    position = prefix + suffix - metadata.query_length[:, None] + step
    # 3. attention: (segments, heads, longest query, longest context)
    mask = (index[:, None] <= position[..., None]) & (index[:, None] > position[..., None] - window)
    rows = queries[packed].view(*packed.shape, -1, dim).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        rows, keys[slot].transpose(1, 2), values[slot].transpose(1, 2), attn_mask=mask[:, None], enable_gqa=True
    )
    attended = attended.transpose(1, 2).reshape(*packed.shape, -1)
    # 4. packed again: (tokens, heads * head dim)
    if metadata.max_query_length == 1:
        return attended[:, 0]
    result = torch.zeros_like(queries)
    result[packed[is_query]] = attended[is_query]
    return result


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See `Ops`."""
    return functional.scaled_dot_product_attention(queries, keys, values)


def _formatted(rows: Tensor, out: InputFormat) -> Rows:
    return quantize(rows) if out is InputFormat.FP8 else rows
