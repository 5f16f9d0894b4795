"""Products with int8 and int4 weights: the kernels against torch, bit for bit the same for any number of rows, and fast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.ops.groupwise import GroupedWeight, quantize
from idefics_cli.engine.native.ops.linear import GroupedLinear, Int4Linear, Int8Linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BITS = pytest.mark.parametrize("bits", [4, 8])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(96, 200), (64, 128), (130, 1152), (1152, 4304), (6144, 4096), (28672, 4096), (4096, 14336)]
"""Outputs and inputs: odd ones, one group, padded groups, and products of the 8B shape with and without parts."""


@pytest.fixture(scope="module")
def ops() -> Ops:
    from idefics_cli.engine.native.ops import triton_ops

    return triton_ops


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, device="cuda").to(dtype)


def weight_of(outputs: int, inputs: int, bits: int) -> GroupedWeight:
    return quantize(draw(outputs, inputs, dtype=torch.float32) * 0.02, bits)


@BITS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_written_out_as_in_torch(ops: Ops, bits: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = weight_of(*shape, bits)
    assert torch.equal(ops.dequantize(weight, dtype), torch_ops.dequantize(weight, dtype))


@BITS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_few_rows(ops: Ops, bits: int, dtype: torch.dtype, shape: tuple[int, int], has_bias: bool) -> None:
    weight, bias = weight_of(*shape, bits), draw(shape[0], dtype=dtype) if has_bias else None
    rows = draw(64, shape[1], dtype=dtype)
    wanted = rows.double() @ torch_ops.dequantize(weight, torch.float32).double().t()
    wanted = wanted if bias is None else wanted + bias.double()
    whole = ops.group_product(rows, weight, bias)
    assert whole.dtype is dtype
    assert float((whole.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]
    for count in (1, 2, 7, 16, 33):
        assert torch.equal(ops.group_product(rows[:count], weight, bias), whole[:count])
    assert torch.equal(ops.group_product(rows[20:50], weight, bias), whole[20:50])
    assert torch.equal(ops.group_product(rows.repeat(3, 1), weight, bias)[130:], whole[2:])


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_many_rows_take_the_plain_product(ops: Ops, kind: type[GroupedLinear]) -> None:
    weight, rows = draw(512, 1152, dtype=torch.bfloat16), draw(1024, 1152, dtype=torch.bfloat16)
    dense = torch_ops.dequantize(quantize(weight, kind.bits), torch.bfloat16)
    assert torch.equal(kind(weight)(rows, ops), functional.linear(rows, dense))
