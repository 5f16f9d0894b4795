from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idefics_cli.config import Quantize
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops, Rows
from idefics_cli.engine.native.ops.linear import Linear, linear_class
from idefics_cli.engine.native.ops.row_counts import equal_row_counts


class OtherForFewRows(Linear):
    """Adds up in another order where rows are few, as a library's kernel for such products."""

    def __call__(self, rows: Rows, ops: Ops) -> Tensor:
        assert isinstance(rows, Tensor)
        if len(rows) >= 40:
            return super().__call__(rows, ops)
        first = rows.clone()
        first[:, self.inputs // 2 :] = 0
        parts = [super(OtherForFewRows, self).__call__(part, ops) for part in (first, rows - first)]
        return parts[0] + parts[1]


def layer(outputs: int, inputs: int, dtype: torch.dtype, kind: type[Linear] = Linear) -> Linear:
    torch.manual_seed(outputs + inputs)
    return kind((torch.randn(outputs, inputs) / inputs**0.5).to(dtype))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 512)])
def test_rows_that_another_kernel_takes_are_left_out(dtype: torch.dtype, width: int) -> None:
    """In 16 bits an order shows in few outputs."""
    odd = layer(width, width, dtype, OtherForFewRows)
    counts = equal_row_counts([odd], [64, 32, 48], torch_ops)
    assert counts[-1] == 64
    assert 32 not in counts
    assert equal_row_counts([layer(16, 16, dtype), odd], [32, 64], torch_ops) == (64,)


@pytest.mark.parametrize("quantize", [quantize for quantize in Quantize if quantize.is_native])
def test_at_the_numbers_that_are_given_rows_have_the_same_bits(quantize: Quantize) -> None:
    layers = [layer(*shape, torch.bfloat16, linear_class(quantize)) for shape in ((192, 128), (128, 384))]
    counts = equal_row_counts(layers, [32, 48, 64, 96, 128], torch_ops)
    assert counts[-1] == 128
    for one in layers:
        rows = torch.randn(128, one.inputs).to(torch.bfloat16)
        expected = one(rows, torch_ops)
        assert expected.dtype is one.dtype
        for count in counts:
            assert torch.equal(one(rows[-count:], torch_ops), expected[-count:])


def test_a_single_number_is_always_right() -> None:
    assert equal_row_counts([layer(8, 16, torch.float32)], [24], torch_ops) == (24,)
