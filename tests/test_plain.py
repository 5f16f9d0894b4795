"""The plain operations beside the stock model's own modules and beside arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.mistral.modeling_mistral import MistralRMSNorm, MistralRotaryEmbedding, apply_rotary_pos_emb

from idefics_cli.config import ModelSettings
from idefics_cli.engine import plain
from idefics_cli.engine.checkpoint import open_checkpoint
from idefics_cli.engine.operations import Quantized, Rows, Segments


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def exact(rows: Rows) -> Tensor:
    """The numbers of rows, quantized or not."""
    return rows.values.float() * rows.scales if isinstance(rows, Quantized) else rows


def test_add_norm_is_rms_norm_without_a_bias_and_layer_norm_with_one() -> None:
    hidden, change, weight, bias = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16), torch.randn(16)
    stock = MistralRMSNorm(16, eps=1e-5)
    stock.weight.data = weight
    total, normed = plain.add_norm(hidden, change, weight, None, 1e-5)
    assert torch.equal(total, hidden + change)
    assert torch.allclose(exact(normed), stock(hidden + change))
    total, normed = plain.add_norm(hidden, None, weight, bias, 1e-5)
    assert torch.equal(total, hidden)
    mean, deviation = hidden.mean(-1, keepdim=True), (hidden.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(exact(normed), (hidden - mean) / deviation * weight + bias, atol=1e-5)


def test_quantized_results_are_within_three_bits_of_the_others() -> None:
    rows = torch.randn(4, 64) * torch.tensor([1.0, 100.0, 0.01, 0.0])[:, None]
    ones = torch.ones(64)
    for found, expected in (
        (plain.quantized(rows), rows),
        (plain.gelu(rows, fp8=True), plain.gelu(rows)),
        (plain.gated_silu(rows, fp8=True), plain.gated_silu(rows)),
        (plain.add_norm(rows, None, ones, None, 1e-5, fp8=True)[1], plain.add_norm(rows, None, ones, None, 1e-5)[1]),
    ):
        assert isinstance(found, Quantized)
        size = exact(expected).abs()
        assert ((exact(found) - exact(expected)).abs() <= size / 16 + size.amax(-1, keepdim=True) / 448).all()


def test_rotate_and_store_is_the_stock_rotation_and_fills_the_slots(tiny_settings: ModelSettings) -> None:
    config = open_checkpoint(tiny_settings).config.text_config
    dim, heads, kv_heads = 64, 4, 2
    positions = ints(5, 0, 17)
    cos, sin = MistralRotaryEmbedding(config)(torch.zeros(1), torch.arange(32)[None])
    qkv = torch.randn(3, (heads + 2 * kv_heads) * dim)
    keys, values = torch.zeros(9, kv_heads, dim), torch.zeros(9, kv_heads, dim)
    queries = plain.rotate_and_store(
        qkv, cos[0, :, : dim // 2], sin[0, :, : dim // 2], positions, ints(8, 2, 4), keys, values
    )
    parts = [
        part.view(1, 3, -1, dim).transpose(1, 2)
        for part in torch.split(qkv, [heads * dim, kv_heads * dim, kv_heads * dim], 1)
    ]
    stock_queries, stock_keys = apply_rotary_pos_emb(parts[0], parts[1], cos[:, positions], sin[:, positions])
    assert torch.allclose(queries.view(3, heads, dim), stock_queries[0].transpose(0, 1), atol=1e-5)
    assert torch.allclose(keys[[8, 2, 4]], stock_keys[0].transpose(0, 1), atol=1e-5)
    assert torch.equal(values[[8, 2, 4]], parts[2][0].transpose(0, 1))
    assert keys[[0, 1, 3, 5, 6, 7]].abs().sum() == 0


def naive(queries: Tensor, keys: Tensor, values: Tensor, place: dict[str, int], window: int) -> Tensor:
    """Attention of one row's queries, position by position."""
    kv_heads, dim = keys.shape[1:]
    slots = [place["prefix_start"] + n for n in range(place["prefix"])] + [
        place["own_start"] + n for n in range(place["own"])
    ]
    out = []
    for index, query in enumerate(queries.view(len(queries), -1, dim)):
        position = len(slots) - len(queries) + index
        seen = [slot for number, slot in enumerate(slots[: position + 1]) if number > position - window]
        group = len(query) // kv_heads
        heads = []
        for head in range(len(query)):
            weights = (keys[seen, head // group] @ query[head] * dim**-0.5).softmax(0)
            heads.append(weights @ values[seen, head // group])
        out.append(torch.cat(heads))
    return torch.stack(out)


@pytest.mark.parametrize("window", [2**30, 7])
def test_attend_reads_prefix_and_own_positions_and_nothing_else(window: int) -> None:
    keys, values = torch.randn(100, 2, 16), torch.randn(100, 2, 16)
    places = [
        {"queries": 1, "prefix_start": 3, "prefix": 20, "own_start": 60, "own": 4},
        {"queries": 5, "prefix_start": 3, "prefix": 20, "own_start": 70, "own": 5},
        {"queries": 9, "prefix_start": 0, "prefix": 0, "own_start": 30, "own": 12},
    ]
    counts = [place["queries"] for place in places]
    starts = [sum(counts[:row]) for row in range(3)]
    queries = torch.randn(sum(counts), 4 * 16)
    segments = Segments(
        ints(*starts),
        ints(*counts),
        ints(*(place["prefix_start"] for place in places)),
        ints(*(place["prefix"] for place in places)),
        ints(*(place["own_start"] for place in places)),
        ints(*(place["own"] for place in places)),
        max(counts),
    )
    found = plain.attend(queries, keys, values, segments, window)
    for place, some, start in zip(places, torch.split(queries, counts), starts, strict=True):
        expected = naive(some, keys, values, place, window)
        assert torch.allclose(found[start : start + len(some)], expected, atol=1e-5)
