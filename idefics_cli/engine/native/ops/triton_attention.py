"""The key/value cache and attention as Triton kernels and torch's fastest; `torch_ops` says what they compute."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from idefics_cli.engine.native.ops.base import AttentionMetadata

_BY_SPEED = [  # at head size 72 on an H200; the later ones take what cuDNN can't
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Index tensors are views at any offset; a kernel must not be compiled anew for each alignment.
_indexed = triton.jit(
    do_not_specialize_on_alignment=[
        *("positions", "slots", "query_start", "query_length"),
        *("prefix_start", "prefix_length", "suffix_start", "suffix_length"),
    ]
)
_KEYS_AT_ONCE = 64
_LEAST_QUERIES = 16  # of a matrix instruction
_MOST_QUERIES = 64


@_indexed
def _rope_and_cache(
    qkv, cos, sin, positions, slots, keys, values,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, Q_SIZE: tl.constexpr, KV_SIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    half = tl.arange(0, HALF)
    c = tl.load(cos + position * HALF + half)[None, :]
    s = tl.load(sin + position * HALF + half)[None, :]
    dim: tl.constexpr = 2 * HALF
    row = qkv + token * (HEADS + 2 * KV_HEADS) * dim
    # queries, in place
    head = tl.arange(0, Q_SIZE)[:, None]
    inside = head < HEADS
    at = row + head * dim + half[None, :]
    first = tl.load(at, inside, 0.0)
    second = tl.load(at + HALF, inside, 0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    tl.store(at, (a * c - b * s).to(first.dtype), inside)
    tl.store(at + HALF, (b * c + a * s).to(first.dtype), inside)
    # keys and values, to the cache
    head = tl.arange(0, KV_SIZE)[:, None]
    inside = head < KV_HEADS
    at = row + (HEADS + head) * dim + half[None, :]
    to = slot * KV_HEADS * dim + head * dim + half[None, :]
    first = tl.load(at, inside, 0.0)
    second = tl.load(at + HALF, inside, 0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    tl.store(keys + to, (a * c - b * s).to(first.dtype), inside)
    tl.store(keys + to + HALF, (b * c + a * s).to(first.dtype), inside)
    at = at + KV_HEADS * dim
    tl.store(values + to, tl.load(at, inside, 0.0), inside)
    tl.store(values + to + HALF, tl.load(at + HALF, inside, 0.0), inside)


def rope_and_cache(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """See `Ops`; the queries are rotated in place."""
    kv_heads, dim = keys.shape[1:]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    _rope_and_cache[(len(qkv),)](
        qkv,
        cos,
        sin,
        positions,
        slots,
        keys,
        values,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        Q_SIZE=triton.next_power_of_2(heads),
        KV_SIZE=triton.next_power_of_2(kv_heads),
        num_warps=4,
    )
    return qkv[:, : heads * dim]


@_indexed
def _attend(
    queries, keys, values, out, query_start, query_length, prefix_start, prefix_length, suffix_start, suffix_length,
    query_stride, out_stride, window, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # One program: a tile of one row's queries, for the heads that share one kv head.
    row, kv_head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(query_length + row)
    if tile * QUERIES >= count:
        return
    prefix, suffix = tl.load(prefix_length + row), tl.load(suffix_length + row)
    index = tl.arange(0, ROWS)
    query = tile * QUERIES + index // GROUP
    head = kv_head * GROUP + index % GROUP
    dims = tl.arange(0, DIM)
    is_query = (index < QUERIES * GROUP) & (query < count)
    packed = (tl.load(query_start + row) + query).to(tl.int64)
    q = tl.load(queries + (packed * query_stride + head * DIM)[:, None] + dims[None, :], is_query[:, None], 0.0)
    position = prefix + suffix - count + query
    best = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, DIM), tl.float32)
    last = tl.minimum(suffix, suffix - count + (tile + 1) * QUERIES)
    for part in tl.static_range(2):
        if part == 0:
            start, length, before = tl.load(prefix_start + row), prefix, 0
        else:
            start, length, before = tl.load(suffix_start + row), last, prefix
        for at in range(0, length, KEYS):
            index_k = at + tl.arange(0, KEYS)
            inside = index_k < length
            slot = (start + index_k).to(tl.int64)
            address = slot * KV_HEADS * DIM + kv_head * DIM
            k = tl.load(keys + address[None, :] + dims[:, None], inside[None, :], 0.0)
            scores = tl.dot(q, k, input_precision=PRECISION) * scale
            seen = before + index_k
            mask = inside[None, :] & (seen[None, :] <= position[:, None]) & (seen[None, :] > position[:, None] - window)
            scores = tl.where(mask, scores, -1e30)
            higher = tl.maximum(best, tl.max(scores, 1))
            weights = tl.where(mask, tl.exp2(scores - higher[:, None]), 0.0)
            shrink = tl.exp2(best - higher)
            v = tl.load(values + address[:, None] + dims[None, :], inside[:, None], 0.0)
            sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            total = total * shrink + tl.sum(weights, 1)
            best = higher
    result = (sums / total[:, None]).to(q.dtype)
    tl.store(out + (packed * out_stride + head * DIM)[:, None] + dims[None, :], result, is_query[:, None])


def paged_attention(queries: Tensor, keys: Tensor, values: Tensor, metadata: AttentionMetadata, window: int) -> Tensor:
    """See `Ops`; kv heads are not repeated, and only filled positions are read."""
    kv_heads, dim = keys.shape[1:]
    group = queries.shape[1] // (kv_heads * dim)
    # The tile depends on whether this is decoding, never on how long the queries of other segments are.
    is_decode = metadata.max_query_length == 1
    size = max(_LEAST_QUERIES if is_decode else _MOST_QUERIES, triton.next_power_of_2(group))
    at_once = size // group
    # In decoding every row is a segment; in prefill the rows of none stay zero.
    out = (queries.new_empty if is_decode else queries.new_zeros)(len(queries), kv_heads * group * dim)
    grid = (len(metadata.query_start), kv_heads, triton.cdiv(metadata.max_query_length, at_once))
    _attend[grid](
        queries,
        keys,
        values,
        out,
        metadata.query_start,
        metadata.query_length,
        metadata.prefix_start,
        metadata.prefix_length,
        metadata.suffix_start,
        metadata.suffix_length,
        queries.stride(0),
        out.stride(0),
        window,
        dim**-0.5 * 1.4426950408889634,  # exp2 takes the place of exp: log2(e)
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        QUERIES=at_once,
        ROWS=size,
        KEYS=_KEYS_AT_ONCE,
        PRECISION="ieee" if queries.dtype is torch.float32 else "tf32",
        num_warps=4,
        num_stages=2 if queries.dtype is torch.float32 else 3,
    )
    return out


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See `Ops`: FlashAttention 4 where it is installed and runs, else cuDNN, else what torch has."""
    flash = _flash_attention(queries.dtype, queries.shape[1], queries.shape[3])
    if flash is not None:
        return flash(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)).transpose(1, 2)
    with sdpa_kernel(_BY_SPEED, set_priority=True):
        return functional.scaled_dot_product_attention(queries, keys, values)


@functools.cache
def _flash_attention(dtype: torch.dtype, heads: int, dim: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return attention over (n, tokens, heads, dim), if a first call of it succeeds."""
    if dtype is torch.float32 or torch.cuda.get_device_capability() < (9, 0):
        return None
    try:
        from flash_attn.cute.interface import flash_attn_func

        def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            result = flash_attn_func(queries, keys, values)
            attended: Tensor = result[0] if isinstance(result, tuple) else result
            return attended

        probe = torch.zeros(1, 128, heads, dim, dtype=dtype, device="cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attention(probe, probe, probe)
    except Exception:  # an extra that does not run here is as one that is not there
        return None
    return attention
