"""int8 and int4 by groups of 128 inputs: how near they are, how they are packed, and that they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from idefics_cli.config import Quantize
from idefics_cli.engine.native.memory_plan import weight_bytes
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import InputFormat
from idefics_cli.engine.native.ops.groupwise import dequantize, join, levels_of, quantize
from idefics_cli.engine.native.ops.linear import GroupedLinear, Int4Linear, Int8Linear, Linear, linear_class
from tests.small_checkpoints import opened, save_checkpoint, settings_of, small_runner

BITS = pytest.mark.parametrize("bits", [4, 8])
ERROR = {4: 0.13, 8: 0.008}


@BITS
@pytest.mark.parametrize("shape", [(64, 256), (30, 200), (5, 128), (3, 7), (2049, 130)])
def test_a_weight_is_kept_within_a_step_of_its_group(bits: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1)
    found = dequantize(quantize(weight, bits), torch.float32)
    assert found.shape == weight.shape
    assert 0 < (found - weight).norm() / weight.norm() < ERROR[bits]


@BITS
def test_what_is_representable_is_exact_and_levels_come_back(bits: int) -> None:
    torch.manual_seed(0)
    first, last = (0, 15) if bits == 4 else (-127, 127)
    levels = torch.randint(first, last + 1, (8, 256))
    levels[:, ::128], levels[:, 1::128] = first, last
    scales, zeros = 2.0 ** -torch.arange(16.0).view(8, 2, 1) / 64, 5 if bits == 4 else 0
    weight = ((levels - zeros).view(8, 2, 128) * scales).flatten(1)
    packed = quantize(weight, bits)
    assert torch.equal(dequantize(packed, torch.float32), weight)
    assert torch.equal(levels_of(packed).flatten(1).int(), levels.int())
    assert torch.equal(dequantize(join([packed, packed]), torch.float32), torch.cat([weight, weight]))
    assert packed.words.nbytes == weight.numel() * bits // 8


@BITS
def test_weights_of_zeros_and_of_one_sign(bits: int) -> None:
    for weight in (torch.zeros(4, 256), torch.rand(4, 256), -torch.rand(4, 256) - 1, torch.full((4, 256), 3.5)):
        found = dequantize(quantize(weight, bits), torch.float32)
        assert (found - weight).norm() <= 0.1 * weight.norm()


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 64, 65])
def test_products_are_those_of_the_weight_that_is_kept(
    kind: type[GroupedLinear], dtype: torch.dtype, count: int
) -> None:
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(shape).to(dtype) for shape in ((count, 200), (64, 200), (64,)))
    layer = kind(weight, bias)
    assert layer.input_format is InputFormat.PLAIN
    wanted = functional.linear(rows, dequantize(quantize(weight, kind.bits), dtype), bias)
    assert torch.equal(layer(rows, torch_ops), wanted)
    assert torch.equal(kind.of_stored([quantize(weight, kind.bits)], bias, dtype)(rows, torch_ops), wanted)
    through = layer.with_gelu(rows, torch_ops, InputFormat.PLAIN)
    assert isinstance(through, torch.Tensor)
    assert torch.equal(through, functional.gelu(wanted, approximate="tanh"))


def test_the_class_goes_by_the_setting() -> None:
    assert linear_class(Quantize.INT8) is Int8Linear
    assert linear_class(Quantize.INT4) is Int4Linear


@pytest.mark.parametrize("given", [quantize for quantize in Quantize if quantize.is_native])
def test_memory_is_foreseen(given: Quantize, tmp_path: Path) -> None:
    """Of products; the rest is the same in every format."""
    settings = settings_of(save_checkpoint(tmp_path / "m", text={"hidden_size": 128, "head_dim": 64}), quantize=given)
    _, family, _ = opened(settings)
    runner, _ = small_runner(settings)
    decoder = runner.decoder
    bits = {Quantize.NONE: 32, Quantize.FP8: 8, Quantize.INT8: 8, Quantize.INT4: 4}[given]
    layer = next(one for one in vars(decoder).values() if isinstance(one, list))[0]
    assert isinstance(layer.qkv, Linear)
    assert layer.qkv.weight.nbytes == (128 + 2 * 64) * 128 * bits // 8
    assert weight_bytes(family.config, given, 4) <= weight_bytes(family.config, Quantize.NONE, 4)
