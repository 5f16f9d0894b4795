"""Each kernel against its plain form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idefics_cli.engine import plain
from idefics_cli.engine.operations import Operations, Quantized, Rows, Segments

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(scope="module")
def kernels() -> Operations:
    from idefics_cli.engine import kernels

    return kernels


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def wide(rows: Rows) -> Tensor:
    return rows.values.float() * rows.scales if isinstance(rows, Quantized) else rows.float()


def error(found: Rows, expected: Rows) -> float:
    return float((wide(found) - wide(expected)).norm() / wide(expected).norm())


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


@BOTH
@pytest.mark.parametrize("width", [300, 4096])
@pytest.mark.parametrize("fp8", [False, True])
def test_add_norm(kernels: Operations, dtype: torch.dtype, width: int, fp8: bool) -> None:
    hidden, change = draw(7, width, dtype=dtype), draw(7, width, dtype=dtype)
    weight, bias = draw(width, dtype=dtype), draw(width, dtype=dtype)
    for some_change in (None, change):
        for some_bias in (None, bias):
            expected = plain.add_norm(hidden.clone(), some_change, weight, some_bias, 1e-5, fp8=fp8)
            found = kernels.add_norm(hidden.clone(), some_change, weight, some_bias, 1e-5, fp8=fp8)
            assert error(found[0], expected[0]) < TOLERANCE[dtype]
            assert error(found[1], expected[1]) < (0.02 if fp8 else TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("fp8", [False, True])
def test_activations(kernels: Operations, dtype: torch.dtype, fp8: bool) -> None:
    rows = draw(5, 3000, dtype=dtype)
    tolerance = 0.02 if fp8 else TOLERANCE[dtype]
    assert error(kernels.gated_silu(rows, fp8=fp8), plain.gated_silu(rows, fp8=fp8)) < tolerance
    assert error(kernels.gelu(rows, fp8=fp8), plain.gelu(rows, fp8=fp8)) < tolerance


def test_quantized(kernels: Operations) -> None:
    rows = draw(6, 500, dtype=torch.bfloat16) * torch.tensor([1, 10, 100, 0.1, 0.01, 0], device="cuda")[:, None]
    found = kernels.quantized(rows.bfloat16())
    assert error(found, plain.quantized(rows.bfloat16())) < 0.005
    assert error(found, rows) < 0.04  # three bits of mantissa


@BOTH
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (4, 2, 64), (6, 2, 64)])
def test_rotate_and_store(kernels: Operations, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    qkv = draw(9, (heads + 2 * kv_heads) * dim, dtype=dtype)
    cos, sin = draw(40, dim // 2), draw(40, dim // 2)
    positions = ints(*range(0, 36, 4))
    slots = torch.randperm(50, device="cuda")[:9].int()
    caches = [torch.zeros(50, kv_heads, dim, dtype=dtype, device="cuda") for _ in range(4)]
    expected = plain.rotate_and_store(qkv.clone(), cos, sin, positions, slots, *caches[:2])
    found = kernels.rotate_and_store(qkv.clone(), cos, sin, positions, slots, *caches[2:])
    assert error(found, expected) < TOLERANCE[dtype]
    assert error(caches[2], caches[0]) < TOLERANCE[dtype]
    assert torch.equal(caches[3], caches[1])


@BOTH
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (6, 2, 64)])
@pytest.mark.parametrize(
    ("queries", "prefixes", "owns"),
    [((1, 1, 1), (0, 70, 333), (1, 5, 100)), ((20, 1, 45), (0, 70, 133), (20, 1, 45)), ((3, 90), (64, 0), (64, 90))],
)
def test_attend(
    kernels: Operations, dtype: torch.dtype, heads: int, kv_heads: int, dim: int,
    queries: tuple[int, ...], prefixes: tuple[int, ...], owns: tuple[int, ...],
) -> None:  # fmt: skip
    keys, values = (draw(1000, kv_heads, dim, dtype=dtype) for _ in range(2))
    rows = draw(sum(queries), heads * dim, dtype=dtype)
    starts = [sum(queries[:row]) for row in range(len(queries))]
    count = range(len(queries))
    segments = Segments(
        ints(*starts), ints(*queries), ints(*(10 * row for row in count)), ints(*prefixes),
        ints(*(400 + 150 * row for row in count)), ints(*owns), max(queries),
    )  # fmt: skip
    for window in (2**30, 40):
        expected = plain.attend(rows, keys, values, segments, window)
        assert error(kernels.attend(rows, keys, values, segments, window), expected) < TOLERANCE[dtype]


@BOTH
@pytest.mark.parametrize(("heads", "tokens", "dim"), [(16, 700, 72), (4, 256, 96), (4, 130, 64)])
def test_attend_all(kernels: Operations, dtype: torch.dtype, heads: int, tokens: int, dim: int) -> None:
    queries, keys, values = draw(2, tokens, 3, heads, dim, dtype=dtype).transpose(1, 3).unbind(2)
    exact = plain.attend_all(queries.double(), keys.double(), values.double())
    assert error(kernels.attend_all(queries, keys, values), exact.float()) < TOLERANCE[dtype]
