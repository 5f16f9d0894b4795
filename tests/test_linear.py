from __future__ import annotations

import torch
from torch.nn import functional

from idefics_cli.config import Quantize
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import InputFormat, ScaledRows
from idefics_cli.engine.native.ops.linear import Fp8Linear, Linear, linear_class


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 256), torch.randn(64, 256) / 16, torch.randn(64)


def test_a_product_with_and_without_a_bias() -> None:
    rows, weight, bias = draw()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):  # which layers may lay out differently
        rows, weight, bias = rows.to(dtype), weight.to(dtype), bias.to(dtype)
        for given in (None, bias):
            found, expected = Linear(weight, given)(rows, torch_ops), functional.linear(rows, weight, given)
            assert found.dtype is dtype
            assert (found - expected).norm() / expected.norm() < tolerance


def test_a_product_through_gelu_takes_the_tanh_form() -> None:
    rows, weight, bias = draw()
    layer = Linear(weight, bias)
    found = layer.with_gelu(rows, torch_ops, InputFormat.PLAIN)
    assert torch.equal(found, functional.gelu(layer(rows, torch_ops), approximate="tanh"))  # type: ignore[arg-type]


def test_fp8_stays_near_and_takes_rows_in_either_format() -> None:
    rows, weight, bias = draw()
    layer, expected = Fp8Linear(weight, bias), functional.linear(rows, weight, bias)
    assert layer.weight.dtype is torch.float8_e4m3fn
    assert layer.input_format is InputFormat.FP8
    found = layer(rows, torch_ops)
    assert 0 < (found - expected).norm() / expected.norm() < 0.06
    assert torch.equal(layer(torch_ops.quantize(rows), torch_ops), found)
    through = layer.with_gelu(rows, torch_ops, InputFormat.FP8)
    assert isinstance(through, ScaledRows)
    assert torch.equal(
        through.values.float(), torch_ops.quantize(functional.gelu(found, approximate="tanh")).values.float()
    )


def test_the_class_goes_by_the_setting() -> None:
    assert linear_class(Quantize.NONE) is Linear
    assert linear_class(Quantize.FP8) is Fp8Linear
