"""Matrix products: in the weights' own format, or row-wise in fp8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine import plain
from idefics_cli.engine.operations import Operations, Quantized, Rows


class Linear:
    """A weight (out, in) and perhaps a bias (out,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, fp8: bool = False) -> None:
        self.weight, self.bias, self.dtype = weight, bias, weight.dtype
        self.scale: Tensor | None = None
        """Of an fp8 weight: float32 (out, 1)."""
        if fp8:
            quantized = plain.quantized(weight)
            self.weight, self.scale = quantized.values, quantized.scales

    @classmethod
    def of(cls, *modules: Any, fp8: bool = False) -> Linear:
        """Join modules that share their input into one product.

        Their weights become views of the joined one; with `fp8` they are let go.
        """
        weight, bias = modules[0].weight.data, modules[0].bias
        if len(modules) > 1:
            weight = torch.cat([module.weight.data for module in modules])
            bias = None if bias is None else torch.cat([module.bias.data for module in modules])
        ends = torch.tensor([len(module.weight) for module in modules]).cumsum(0).tolist()
        for module, start, end in zip(modules, [0, *ends], ends, strict=False):
            module.weight.data = weight.new_empty(0) if fp8 else weight[start:end]
            if bias is not None:
                module.bias.data = bias[start:end]
        return cls(weight, bias, fp8=fp8)

    def __call__(self, rows: Rows, operations: Operations) -> Tensor:
        """Return rows (tokens, in) times the weight: (tokens, out)."""
        if self.scale is None:
            assert isinstance(rows, Tensor)
            return functional.linear(rows, self.weight, self.bias)
        if isinstance(rows, Tensor):
            rows = operations.quantized(rows)
        return self._fp8(rows, self.scale)

    def with_gelu(self, rows: Rows, operations: Operations) -> Rows:
        """Return the product through GELU, quantized where the weight is."""
        if isinstance(rows, Tensor) and rows.is_cuda and self.scale is None and self.bias is not None:
            # In the product's epilogue, in its tanh form; on the CPU this function takes the other form.
            return torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)  # noqa: SLF001
        return operations.gelu(self(rows, operations), fp8=self.scale is not None)

    def _fp8(self, rows: Quantized, scale: Tensor) -> Tensor:
        if rows.values.is_cuda and self.dtype is torch.bfloat16:
            product: Tensor = torch._scaled_mm(  # noqa: SLF001
                rows.values,
                self.weight.t(),
                scale_a=rows.scales,
                scale_b=scale.t(),
                bias=self.bias,
                out_dtype=self.dtype,
                use_fast_accum=True,
            )
            return product
        wide = (rows.values.float() @ self.weight.float().t()) * rows.scales * scale.t()
        return (wide if self.bias is None else wide + self.bias).to(self.dtype)
