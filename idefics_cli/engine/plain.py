"""The operations in plain torch: any device, nothing compiled, and what the kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.operations import Quantized, Rows, Segments

FLOAT8_LARGEST = 448.0  # of float8_e4m3fn


def add_norm(
    hidden: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, *, fp8: bool = False
) -> tuple[Tensor, Rows]:
    """See `Operations`."""
    if change is not None:
        hidden = hidden + change
    if bias is not None:
        normed = functional.layer_norm(hidden, (hidden.shape[-1],), weight, bias, eps)
    else:
        wide = hidden.float()
        normed = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)
    return hidden, quantized(normed) if fp8 else normed


def gated_silu(gate_up: Tensor, *, fp8: bool = False) -> Rows:
    """See `Operations`."""
    gate, up = gate_up.chunk(2, -1)
    active = functional.silu(gate) * up
    return quantized(active) if fp8 else active


def gelu(rows: Tensor, *, fp8: bool = False) -> Rows:
    """See `Operations`."""
    active = functional.gelu(rows, approximate="tanh")
    return quantized(active) if fp8 else active


def quantized(rows: Tensor) -> Quantized:
    """See `Operations`."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FLOAT8_LARGEST
    return Quantized((wide / scale).to(torch.float8_e4m3fn), scale)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """See `Operations`."""
    kv_heads, dim = keys.shape[1:]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    cos, sin = cos[positions, None], sin[positions, None]
    rotated = qkv[:, : (heads + kv_heads) * dim].view(len(qkv), heads + kv_heads, dim).float()
    first, second = rotated.chunk(2, -1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(qkv.dtype)
    keys[slots] = rotated[:, heads:]
    values[slots] = qkv[:, (heads + kv_heads) * dim :].view(len(qkv), kv_heads, dim)
    return rotated[:, :heads].reshape(len(qkv), heads * dim)


def attend(queries: Tensor, keys: Tensor, values: Tensor, segments: Segments, window: int) -> Tensor:
    """See `Operations`; rows are padded to the longest query and the longest context."""
    dim = keys.shape[2]
    device = queries.device
    prefix, own = segments.prefix_length[:, None].long(), segments.own_length[:, None].long()
    # 1. (rows, longest context): the slot of each position
    place = torch.arange(int((prefix + own).max()), device=device)[None]
    slot = torch.where(
        place < prefix, segments.prefix_start[:, None] + place, segments.own_start[:, None] + place - prefix
    )
    slot = torch.where(place < prefix + own, slot, segments.own_start[:, None])
    # 2. (rows, longest query): the packed index and the position of each query
    step = torch.arange(segments.longest_query, device=device)[None]
    is_query = step < segments.query_length[:, None]
    packed = segments.query_start[:, None] + torch.where(is_query, step, 0)
    position = prefix + own - segments.query_length[:, None] + step
    # 3. (rows, heads, longest query, longest context)
    mask = (place[:, None] <= position[..., None]) & (place[:, None] > position[..., None] - window)
    rows = queries[packed].view(*packed.shape, -1, dim).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        rows, keys[slot].transpose(1, 2), values[slot].transpose(1, 2), attn_mask=mask[:, None], enable_gqa=True
    )
    attended = attended.transpose(1, 2).reshape(*packed.shape, -1)
    if segments.longest_query == 1:
        return attended[:, 0]
    return attended[is_query]


def attend_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See `Operations`."""
    return functional.scaled_dot_product_attention(queries, keys, values)
