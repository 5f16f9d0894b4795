"""Attention over the key/value cache in torch, see `Ops.paged_attention`: one way for CPUs, one for GPUs.

On a CPU a launch costs little, and padding costs as much as what is attended to; on a GPU it is the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.native.ops.base import AttentionMetadata

_CONTEXT_BLOCK = 512  # keys that torch's attention takes at once


def attention_one_by_one(
    queries: Tensor, keys: Tensor, values: Tensor, metadata: AttentionMetadata, window: int
) -> Tensor:
    """Attend to one segment after another, nothing padded: no sum can depend on the other segments."""
    dim = keys.shape[2]
    result = torch.zeros_like(queries)
    for start, length, prefix_start, prefix, suffix_start, suffix in metadata.on_host():
        if not suffix_start:  # slot 0 is that of no sequence
            continue
        # 1. (heads, queries, head dim), and (kv heads, context, head dim) of what the window shows to any query
        hidden = max(0, prefix + suffix - length - window + 1)
        parts = (
            slice(prefix_start + min(hidden, prefix), prefix_start + prefix),
            slice(suffix_start + max(0, hidden - prefix), suffix_start + suffix),
        )
        context_keys, context_values = (
            torch.cat([cache[part] for part in parts]).transpose(0, 1) for cache in (keys, values)
        )
        own = queries[start : start + length].view(length, -1, dim).transpose(0, 1)
        # 2. attention; a single query sees all of it
        context = context_keys.shape[1]
        is_causal = length == context <= window
        mask = None
        if length > 1 and not is_causal:
            index = torch.arange(context)
            position = index[-length:, None]
            mask = (index <= position) & (index > position - window)
        attended = functional.scaled_dot_product_attention(
            own[None], context_keys[None], context_values[None], attn_mask=mask, is_causal=is_causal, enable_gqa=True
        )
        result[start : start + length] = attended[0].transpose(0, 1).reshape(length, -1)
    return result


def attention_padded(queries: Tensor, keys: Tensor, values: Tensor, metadata: AttentionMetadata, window: int) -> Tensor:
    """Attend to all segments at once, padded to the longest query and to whole blocks of the longest context.

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
