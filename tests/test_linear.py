from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.engine import plain
from idefics_cli.engine.linear import Linear
from idefics_cli.engine.operations import Quantized


def test_joined_modules_share_the_weight_and_keep_working() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(8, width) for width in (4, 6, 2)]
    rows = torch.randn(5, 8)
    expected = torch.cat([module(rows) for module in modules], 1)
    joined = Linear.of(*modules)
    assert torch.allclose(joined(rows, plain), expected, atol=1e-6)
    assert torch.allclose(torch.cat([module(rows) for module in modules], 1), expected, atol=1e-6)
    assert all(module.weight.data_ptr() != 0 for module in modules)
    assert modules[1].weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()


def test_a_product_through_gelu_takes_the_tanh_form() -> None:
    torch.manual_seed(0)
    module, rows = nn.Linear(8, 4), torch.randn(5, 8) * 3
    found = Linear.of(module).with_gelu(rows, plain)
    assert torch.equal(found, functional.gelu(module(rows), approximate="tanh"))  # type: ignore[arg-type]
    assert not torch.equal(found, functional.gelu(module(rows)))  # type: ignore[arg-type]


def test_fp8_lets_the_weights_go_and_stays_near() -> None:
    torch.manual_seed(0)
    module, rows = nn.Linear(256, 64), torch.randn(5, 256)
    expected = module(rows)
    quantized = Linear.of(module, fp8=True)
    assert quantized.weight.dtype is torch.float8_e4m3fn
    assert module.weight.numel() == 0
    found = quantized(rows, plain)
    assert 0 < (found - expected).norm() / expected.norm() < 0.06
    through, exact = quantized.with_gelu(rows, plain), plain.gelu(found)
    assert isinstance(through, Quantized)
    assert isinstance(exact, Tensor)
    assert torch.allclose(through.values.float() * through.scales, exact, atol=0.2)
