"""The operations in torch beside transformers' own modules and beside arithmetic written out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralRMSNorm, MistralRotaryEmbedding, apply_rotary_pos_emb

from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import AttentionMetadata, InputFormat, Rows, ScaledRows, has_triton
from idefics_cli.engine.native.ops.torch_attention import attention_one_by_one, attention_padded

PLAIN, FP8 = InputFormat.PLAIN, InputFormat.FP8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def exact(rows: Rows) -> Tensor:
    return rows.values.float() * rows.scales if isinstance(rows, ScaledRows) else rows


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the size of what is expected."""
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def test_norms() -> None:
    hidden, residual, weight, bias = (100 * torch.randn(*shape) for shape in ((3, 16), (3, 16), (16,), (16,)))
    reference = MistralRMSNorm(16, eps=1e-5)
    reference.weight.data = weight
    total, normed = torch_ops.fused_add_rms_norm(hidden, residual, weight, 1e-5, PLAIN)
    assert torch.equal(total, hidden + residual)
    assert error(exact(normed), reference(hidden + residual)) < 1e-6
    total, normed = torch_ops.fused_add_layer_norm(hidden, None, weight, bias, 1e-5, PLAIN)
    assert torch.equal(total, hidden)
    mean, deviation = hidden.mean(-1, keepdim=True), (hidden.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert error(exact(normed), (hidden - mean) / deviation * weight + bias) < 1e-6
    _, normed = torch_ops.fused_add_layer_norm(hidden, residual, weight, bias, 1e-5, PLAIN)
    _, summed = torch_ops.fused_add_layer_norm(hidden + residual, None, weight, bias, 1e-5, PLAIN)
    assert torch.equal(exact(normed), exact(summed))


def test_activations() -> None:
    rows = 3 * torch.randn(4, 20)
    gate, up = rows[:, :10], rows[:, 10:]
    assert error(exact(torch_ops.silu_and_mul(rows, PLAIN)), gate / (1 + (-gate).exp()) * up) < 1e-6
    inner = (2 / torch.pi) ** 0.5 * (rows + 0.044715 * rows**3)
    assert error(exact(torch_ops.gelu(rows, PLAIN)), rows / 2 * (1 + inner.tanh())) < 1e-6


def test_quantized_results_are_within_three_bits_of_the_others() -> None:
    rows = torch.randn(4, 64) * torch.tensor([1.0, 100.0, 0.01, 0.0])[:, None]
    ones = torch.ones(64)
    for found, expected in (
        (torch_ops.quantize(rows), rows),
        (torch_ops.gelu(rows, FP8), torch_ops.gelu(rows, PLAIN)),
        (torch_ops.silu_and_mul(rows, FP8), torch_ops.silu_and_mul(rows, PLAIN)),
        (
            torch_ops.fused_add_rms_norm(rows, None, ones, 1e-5, FP8)[1],
            torch_ops.fused_add_rms_norm(rows, None, ones, 1e-5, PLAIN)[1],
        ),
        (
            torch_ops.fused_add_layer_norm(rows, None, ones, ones, 1e-5, FP8)[1],
            torch_ops.fused_add_layer_norm(rows, None, ones, ones, 1e-5, PLAIN)[1],
        ),
    ):
        assert isinstance(found, ScaledRows)
        assert found.values.dtype is torch.float8_e4m3fn
        size = exact(expected).abs()
        assert ((exact(found) - exact(expected)).abs() <= size / 16 + size.amax(-1, keepdim=True) / 448).all()


def test_rope_and_cache_is_transformers_rotation_and_fills_the_slots() -> None:
    dim, heads, kv_heads = 64, 4, 2
    config = MistralConfig(hidden_size=256, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    positions = ints(5, 0, 17)
    cos, sin = MistralRotaryEmbedding(config)(torch.zeros(1), torch.arange(32)[None])
    qkv = torch.randn(3, (heads + 2 * kv_heads) * dim)
    keys, values = torch.zeros(9, kv_heads, dim), torch.zeros(9, kv_heads, dim)
    queries = torch_ops.rope_and_cache(
        qkv, cos[0, :, : dim // 2], sin[0, :, : dim // 2], positions, ints(8, 2, 4), keys, values
    )
    parts = [
        part.view(1, 3, -1, dim).transpose(1, 2)
        for part in torch.split(qkv, [heads * dim, kv_heads * dim, kv_heads * dim], 1)
    ]
    rotated, rotated_keys = apply_rotary_pos_emb(parts[0], parts[1], cos[:, positions], sin[:, positions])
    assert error(queries.view(3, heads, dim), rotated[0].transpose(0, 1)) < 1e-6
    assert error(keys[[8, 2, 4]], rotated_keys[0].transpose(0, 1)) < 1e-6
    assert torch.equal(values[[8, 2, 4]], parts[2][0].transpose(0, 1))
    assert keys[[0, 1, 3, 5, 6, 7]].abs().sum() == 0


Segment = tuple[int, int, int, int, int]
"""Queries, prefix start and length, suffix start and length."""


def naive(queries: Tensor, keys: Tensor, values: Tensor, segment: Segment, window: int) -> Tensor:
    """Attention of one segment's queries, position by position."""
    _, prefix_start, prefix, suffix_start, suffix = segment
    slots = [prefix_start + n for n in range(prefix)] + [suffix_start + n for n in range(suffix)]
    dim, out = keys.shape[2], []
    group = queries.shape[1] // dim // keys.shape[1]
    for index, query in enumerate(queries.view(len(queries), -1, dim)):
        position = len(slots) - len(queries) + index
        seen = [slot for number, slot in enumerate(slots[: position + 1]) if number > position - window]
        heads = []
        for head in range(len(query)):
            weights = (keys[seen, head // group] @ query[head] * dim**-0.5).softmax(0)
            heads.append(weights @ values[seen, head // group])
        out.append(torch.cat(heads))
    return torch.stack(out)


def metadata_of(segments: list[Segment]) -> AttentionMetadata:
    counts, prefix_starts, prefixes, suffix_starts, suffixes = zip(*segments, strict=True)
    starts = [sum(counts[:row]) for row in range(len(counts))]
    return AttentionMetadata(
        ints(*starts), ints(*counts), ints(*prefix_starts), ints(*prefixes), ints(*suffix_starts), ints(*suffixes),
        max(counts),
    )  # fmt: skip


Attention = Callable[[Tensor, Tensor, Tensor, AttentionMetadata, int], Tensor]
ATTENTION = pytest.mark.parametrize("attention", [attention_one_by_one, attention_padded])


@pytest.mark.parametrize("window", [2**30, 7])
@pytest.mark.parametrize(
    "segments",
    [
        [(1, 3, 20, 60, 4), (5, 3, 20, 70, 5), (9, 0, 0, 30, 12)],
        [(1, 3, 20, 60, 4), (1, 0, 0, 30, 12), (1, 3, 20, 70, 1)],
        [(2, 0, 0, 1, 600)],
    ],
    ids=["prefill", "decode", "long"],
)
@ATTENTION
def test_paged_attention_reads_prefix_and_suffix_and_nothing_else(
    attention: Attention, segments: list[Segment], window: int
) -> None:
    keys, values = torch.randn(700, 2, 16), torch.randn(700, 2, 16)
    counts = [segment[0] for segment in segments]
    queries = torch.randn(sum(counts), 4 * 16)
    found = attention(queries, keys, values, metadata_of(segments), window)
    for some, part, segment in zip(torch.split(queries, counts), torch.split(found, counts), segments, strict=True):
        assert error(part, naive(some, keys, values, segment, window)) < 1e-5


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 30])
@ATTENTION
def test_a_segments_attention_is_bit_for_bit_the_same_in_any_company_and_with_any_threads(
    attention: Attention, threads: int, dtype: torch.dtype, length: int
) -> None:
    """Eight segments, in several orders and each by itself."""
    keys, values = (torch.randn(5000, 2, 64, dtype=dtype) for _ in range(2))
    queries = torch.randn(8, length, 4 * 64, dtype=dtype)
    segments = [
        (length, 0, 40, 100 + 600 * n, length + more) for n, more in enumerate((0, 3, 17, 60, 61, 200, 350, 470))
    ]

    def attended(order: list[int]) -> Tensor:
        metadata = metadata_of([segments[index] for index in order])
        found = attention(queries[order].flatten(0, 1), keys, values, metadata, 2**30)
        return found.view(len(order), length, -1)

    expected = attended(list(range(8)))
    for seed in range(5):
        order = random.Random(seed).sample(range(8), 8)
        assert torch.equal(attended(order), expected[order])
    for index in range(8):
        assert torch.equal(attended([index])[0], expected[index])


def test_on_a_cpu_rows_of_no_sequence_are_not_attended_to() -> None:
    keys, values, queries = torch.randn(90, 2, 16), torch.randn(90, 2, 16), torch.randn(3, 4 * 16)
    metadata = metadata_of([(1, 0, 0, 0, 1), (1, 3, 20, 60, 4), (1, 0, 0, 0, 1)])
    found = torch_ops.paged_attention(queries, keys, values, metadata, 2**30)
    assert error(found[1:2], naive(queries[1:2], keys, values, (1, 3, 20, 60, 4), 2**30)) < 1e-5
    assert found[[0, 2]].abs().sum() == 0


def test_sdpa() -> None:
    queries, keys, values = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    expected = (queries @ keys.transpose(2, 3) * 8**-0.5).softmax(-1) @ values
    assert error(torch_ops.sdpa(queries, keys, values), expected) < 1e-5


def test_a_cpu_has_no_triton() -> None:
    assert not has_triton(torch.device("cpu"), 128)
