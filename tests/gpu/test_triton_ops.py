"""Each Triton kernel against its form in torch; errors are relative to the size of what is expected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import AttentionMetadata, InputFormat, Ops, Rows, ScaledRows, has_triton
from idefics_cli.engine.native.ops.linear import Fp8Linear, Linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
FORMATS = pytest.mark.parametrize("out", list(InputFormat))


@pytest.fixture(scope="module")
def ops() -> Ops:
    from idefics_cli.engine.native.ops import triton_ops

    return triton_ops


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def wide(rows: Rows) -> Tensor:
    return rows.values.float() * rows.scales if isinstance(rows, ScaledRows) else rows.float()


def error(found: Rows, expected: Rows) -> float:
    return float((wide(found) - wide(expected)).norm() / wide(expected).norm())


def tolerance(dtype: torch.dtype, out: InputFormat) -> float:
    return 0.02 if out is InputFormat.FP8 else TOLERANCE[dtype]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def test_there_is_triton_here() -> None:
    assert has_triton(torch.device("cuda"), 128)
    assert not has_triton(torch.device("cuda"), 96)


@BOTH
@FORMATS
@pytest.mark.parametrize("width", [300, 4096])
@pytest.mark.parametrize("adds", [False, True])
def test_norms(ops: Ops, dtype: torch.dtype, out: InputFormat, width: int, adds: bool) -> None:
    hidden, weight, bias = draw(7, width, dtype=dtype), draw(width, dtype=dtype), draw(width, dtype=dtype)
    residual = draw(7, width, dtype=dtype) if adds else None
    for found, expected in (
        (
            ops.fused_add_layer_norm(hidden.clone(), residual, weight, bias, 1e-5, out),
            torch_ops.fused_add_layer_norm(hidden.clone(), residual, weight, bias, 1e-5, out),
        ),
        (
            ops.fused_add_rms_norm(hidden.clone(), residual, weight, 1e-5, out),
            torch_ops.fused_add_rms_norm(hidden.clone(), residual, weight, 1e-5, out),
        ),
    ):
        assert error(found[0], expected[0]) < TOLERANCE[dtype]
        assert error(found[1], expected[1]) < tolerance(dtype, out)


@BOTH
@FORMATS
def test_activations(ops: Ops, dtype: torch.dtype, out: InputFormat) -> None:
    rows = draw(5, 3000, dtype=dtype)
    assert error(ops.silu_and_mul(rows, out), torch_ops.silu_and_mul(rows, out)) < tolerance(dtype, out)
    assert error(ops.gelu(rows, out), torch_ops.gelu(rows, out)) < tolerance(dtype, out)


def test_quantize(ops: Ops) -> None:
    rows = draw(6, 500) * torch.tensor([1, 10, 100, 0.1, 0.01, 0], device="cuda")[:, None]
    found = ops.quantize(rows.bfloat16())
    assert error(found, torch_ops.quantize(rows.bfloat16())) < 0.005
    assert error(found, rows) < 0.04  # three bits of mantissa


@BOTH
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (4, 2, 64), (6, 2, 64)])
def test_rope_and_cache(ops: Ops, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    qkv = draw(9, (heads + 2 * kv_heads) * dim, dtype=dtype)
    cos, sin = draw(40, dim // 2), draw(40, dim // 2)
    positions = ints(*range(0, 36, 4))
    slots = torch.randperm(50, device="cuda")[:9].int()
    keys, values, expected_keys, expected_values = (
        torch.zeros(50, kv_heads, dim, dtype=dtype, device="cuda") for _ in range(4)
    )
    expected = torch_ops.rope_and_cache(qkv.clone(), cos, sin, positions, slots, expected_keys, expected_values)
    found = ops.rope_and_cache(qkv.clone(), cos, sin, positions, slots, keys, values)
    assert error(found, expected) < TOLERANCE[dtype]
    assert error(keys, expected_keys) < TOLERANCE[dtype]
    assert torch.equal(values, expected_values)


SEGMENTS = [
    ((1, 1, 1), (0, 70, 333), (1, 5, 100)),
    ((20, 1, 45), (0, 70, 133), (20, 1, 45)),
    ((3, 90), (64, 0), (64, 90)),
    ((2, 200), (0, 0), (2, 230)),
]
"""Queries, lengths of prefixes, lengths of suffixes."""


def metadata_of(queries: tuple[int, ...], prefixes: tuple[int, ...], suffixes: tuple[int, ...]) -> AttentionMetadata:
    count = range(len(queries))
    return AttentionMetadata(
        ints(*(sum(queries[:row]) for row in count)), ints(*queries), ints(*(10 * row for row in count)),
        ints(*prefixes), ints(*(400 + 250 * row for row in count)), ints(*suffixes), max(queries),
    )  # fmt: skip


@BOTH
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (6, 2, 64)])
@pytest.mark.parametrize(("queries", "prefixes", "suffixes"), SEGMENTS)
@pytest.mark.parametrize("window", [2**30, 40])
def test_paged_attention(
    ops: Ops, dtype: torch.dtype, heads: int, kv_heads: int, dim: int,
    queries: tuple[int, ...], prefixes: tuple[int, ...], suffixes: tuple[int, ...], window: int,
) -> None:  # fmt: skip
    keys, values = (draw(1200, kv_heads, dim, dtype=dtype) for _ in range(2))
    rows = draw(sum(queries), heads * dim, dtype=dtype)
    metadata = metadata_of(queries, prefixes, suffixes)
    expected = torch_ops.paged_attention(rows, keys, values, metadata, window)
    assert error(ops.paged_attention(rows, keys, values, metadata, window), expected) < TOLERANCE[dtype]


@BOTH
def test_a_segments_attention_is_bit_for_bit_the_same_in_any_company(ops: Ops, dtype: torch.dtype) -> None:
    keys, values = (draw(1200, 2, 64, dtype=dtype) for _ in range(2))
    rows = draw(65, 6 * 64, dtype=dtype)
    together = ops.paged_attention(rows, keys, values, metadata_of((20, 45), (0, 133), (20, 45)), 2**30)
    alone = AttentionMetadata(ints(0), ints(45), ints(10), ints(133), ints(650), ints(45), 45)
    assert torch.equal(ops.paged_attention(rows[20:], keys, values, alone, 2**30), together[20:])


@BOTH
def test_tokens_that_pad_a_batch_change_nothing(ops: Ops, dtype: torch.dtype) -> None:
    keys, values = (draw(1200, 2, 64, dtype=dtype) for _ in range(2))
    rows = draw(65, 6 * 64, dtype=dtype)
    metadata = metadata_of((20, 45), (0, 133), (20, 45))
    padded = torch.cat([rows, draw(63, 6 * 64, dtype=dtype)])
    expected = ops.paged_attention(rows, keys, values, metadata, 2**30)
    found = ops.paged_attention(padded, keys, values, metadata, 2**30)
    assert torch.equal(found[:65], expected)
    assert (found[65:] == 0).all()


@BOTH
@pytest.mark.parametrize(("heads", "tokens", "dim"), [(16, 700, 72), (4, 256, 96), (4, 130, 64)])
def test_sdpa(ops: Ops, dtype: torch.dtype, heads: int, tokens: int, dim: int) -> None:
    queries, keys, values = draw(2, tokens, 3, heads, dim, dtype=dtype).transpose(1, 3).unbind(2)
    exact = torch_ops.sdpa(queries.double(), keys.double(), values.double())
    assert error(ops.sdpa(queries, keys, values), exact.float()) < TOLERANCE[dtype]


@FORMATS
def test_products_on_the_gpu_are_those_of_the_cpu(ops: Ops, out: InputFormat) -> None:
    rows, weight, bias = draw(32, 256), draw(64, 256) / 16, draw(64)
    for kind, limit in ((Linear, 0.01), (Fp8Linear, 0.06)):
        layer = kind(weight.bfloat16(), bias.bfloat16())
        expected = kind(weight.cpu(), bias.cpu())
        assert error(layer(rows.bfloat16(), ops).cpu(), expected(rows.cpu(), torch_ops)) < limit
        gelu = layer.with_gelu(rows.bfloat16(), ops, out)
        exact = expected.with_gelu(rows.cpu(), torch_ops, InputFormat.PLAIN)
        assert float((wide(gelu).cpu() - wide(exact)).norm() / wide(exact).norm()) < 0.08
