"""Matrix products. A layer owns the format of its weight and says which format its input takes."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.config import Quantize
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import InputFormat, Ops, Rows, ScaledRows
from idefics_cli.engine.native.ops.groupwise import GroupedWeight, join
from idefics_cli.engine.native.ops.groupwise import quantize as quantize_groups


class Linear:
    """A weight (out, in) and perhaps a bias (out,), in the dtype of the model."""

    input_format = InputFormat.PLAIN

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = _packed(weight), bias

    @property
    def inputs(self) -> int:
        """Columns of the rows that it takes."""
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        """Columns of what it returns."""
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of what it returns."""
        return self.weight.dtype

    def __call__(self, rows: Rows, ops: Ops) -> Tensor:  # noqa: ARG002 - other formats need the operations
        """Return rows (tokens, in) times the weight: (tokens, out)."""
        assert isinstance(rows, Tensor)
        if self.weight.is_mkldnn:
            onednn = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
            product: Tensor = onednn(rows, self.weight, self.bias, "none", [], "")
            return product
        return functional.linear(rows, self.weight, self.bias)

    def with_gelu(self, rows: Rows, ops: Ops, out: InputFormat) -> Rows:
        """Return the product through GELU, in the format that the next product takes."""
        if isinstance(rows, Tensor) and rows.is_cuda and self.bias is not None and out is InputFormat.PLAIN:
            # In the product's epilogue, in its tanh form; on the CPU this function takes the other form.
            return torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)  # noqa: SLF001
        return ops.gelu(self(rows, ops), out)


def _packed(weight: Tensor) -> Tensor:
    """Return a weight (out, in) as oneDNN lays it out for this processor; as it is where that is not worth it.

    In float32 torch takes MKL, which on an AMD EPYC needs twice as long for the few rows of a decoding step, and half
    as long again for many. In 16 bits it takes oneDNN by itself.
    """
    if not (weight.is_cpu and weight.dtype is torch.float32 and _has_onednn()):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
    return packed


@functools.cache
def _has_onednn() -> bool:
    """Whether oneDNN has fast products in float32 here; without AVX2 it has not."""
    is_fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return is_fast and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call,unused-ignore]


class QuantizedLinear(Linear, ABC):
    """A weight in fewer bits than the dtype of the model."""

    _dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """See `Linear`."""
        return self._dtype

    @classmethod
    @abstractmethod
    def of_stored(cls, parts: Sequence[GroupedWeight | ScaledRows], bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """Take weights of the same inputs that are quantized in the format of the layer already, joined.

        Args:
            parts: in the format of the layer.
            bias: of all outputs.
            dtype: of the model.

        """

    def with_gelu(self, rows: Rows, ops: Ops, out: InputFormat) -> Rows:
        """See `Linear`."""
        return ops.gelu(self(rows, ops), out)


class Fp8Linear(QuantizedLinear):
    """A weight in float8_e4m3fn with a scale for each output, times rows with a scale each."""

    input_format = InputFormat.FP8

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._take(torch_ops.quantize(weight), bias, weight.dtype)

    @classmethod
    def of_stored(cls, parts: Sequence[GroupedWeight | ScaledRows], bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """See `QuantizedLinear`."""
        rows = [part for part in parts if isinstance(part, ScaledRows)]
        # Not every device can join float8: its bytes are joined.
        values = torch.cat([part.values.view(torch.uint8) for part in rows]).view(torch.float8_e4m3fn)
        layer = cls.__new__(cls)
        layer._take(ScaledRows(values, torch.cat([part.scales for part in rows])), bias, dtype)  # noqa: SLF001
        return layer

    def _take(self, quantized: ScaledRows, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(quantized.values, bias)
        self._scale, self._dtype = quantized.scales, dtype

    def __call__(self, rows: Rows, ops: Ops) -> Tensor:
        """Return rows (tokens, in) times the weight: (tokens, out)."""
        if isinstance(rows, Tensor):
            rows = ops.quantize(rows)
        if rows.values.is_cuda and self._dtype is torch.bfloat16:
            product: Tensor = torch._scaled_mm(  # noqa: SLF001
                rows.values,
                self.weight.t(),
                scale_a=rows.scales,
                scale_b=self._scale.t(),
                bias=self.bias,
                out_dtype=self._dtype,
                use_fast_accum=True,
            )
            return product
        wide = (rows.values.float() @ self.weight.float().t()) * rows.scales * self._scale.t()
        return (wide if self.bias is None else wide + self.bias).to(self._dtype)


class GroupedLinear(QuantizedLinear):
    """A weight in integer levels with a scale for each group of 128 inputs, times rows in the dtype of the model."""

    bits: int

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._take(quantize_groups(weight, self.bits), bias, weight.dtype)

    @classmethod
    def of_stored(cls, parts: Sequence[GroupedWeight | ScaledRows], bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """See `QuantizedLinear`."""
        layer = cls.__new__(cls)
        grouped = join([part for part in parts if isinstance(part, GroupedWeight)])
        layer._take(grouped, bias, dtype)  # noqa: SLF001
        return layer

    def _take(self, grouped: GroupedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(grouped.words, bias)
        self._grouped, self._dtype = grouped, dtype

    @property
    def inputs(self) -> int:
        """See `Linear`."""
        return self._grouped.width

    @property
    def outputs(self) -> int:
        """See `Linear`."""
        return self._grouped.outputs

    def __call__(self, rows: Rows, ops: Ops) -> Tensor:
        """Return rows (tokens, in) times the weight: (tokens, out).

        A few rows, such as a decoding step has, read the packed weights. Many are worth writing the weight out in the
        dtype of the model for a plain product.
        """
        assert isinstance(rows, Tensor)
        if len(rows) <= _FEW_ROWS:
            return ops.group_product(rows, self._grouped, self.bias)
        return functional.linear(rows, ops.dequantize(self._grouped, self._dtype), self.bias)


class Int8Linear(GroupedLinear):
    """Levels of 8 bits."""

    bits = 8


class Int4Linear(GroupedLinear):
    """Levels of 4 bits."""

    bits = 4


_FEW_ROWS = 64
_FORMATS: dict[Quantize, type[Linear]] = {
    Quantize.NONE: Linear,
    Quantize.FP8: Fp8Linear,
    Quantize.INT8: Int8Linear,
    Quantize.INT4: Int4Linear,
}


def linear_class(quantize: Quantize) -> type[Linear]:
    """Return the kind of layer that keeps its weight in this format."""
    return _FORMATS[quantize]
