"""Weights on their way to the device: read, adapted, joined and quantized, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from idefics_cli.config import Quantize
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.native import awq, compressed
from idefics_cli.engine.native.compressed import QuantizedWeight
from idefics_cli.engine.native.memory_plan import MOST_LAYERS_AT_ONCE
from idefics_cli.engine.native.merge import AdapterMerger
from idefics_cli.engine.native.ops.linear import Linear, QuantizedLinear, linear_class
from idefics_cli.engine.native.tensor_reader import TensorReader
from idefics_cli.engine.native.torch_device import use_device, wide_dtype
from idefics_cli.engine.quantization import CompressedFormat
from idefics_cli.errors import ModelError

Source = Callable[[str], Tensor]
"""Returns a tensor by its name, on the device and in the dtype of the model."""
Layer = TypeVar("Layer")


class Weights:
    """What models are built of. A tensor is read when it is asked for; the parts of a joined product are let go."""

    def __init__(
        self,
        source: Source,
        quantize: Quantize,
        dtype: torch.dtype,
        device: torch.device,
        *,
        readers: int = MOST_LAYERS_AT_ONCE,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Say where weights come from and what they become.

        Args:
            source: of the tensors.
            quantize: the format of linear layers.
            dtype: of the model.
            device: of the model.
            readers: layers that are read at once, each of which takes memory on its way to its format.
            is_cancelled: asked before each weight is read; once it says so, that raises ModelError.

        """
        self._source, self._linear, self._readers = source, linear_class(quantize), readers
        self._is_cancelled = is_cancelled
        checkpoint = source if isinstance(source, CheckpointSource) else None
        self._stored = checkpoint.quantized if checkpoint and quantize is checkpoint.quantize else None
        # A prepared folder says what is quantized: the rest stays as it is.
        self._is_prepared = checkpoint is not None and checkpoint.is_prepared
        self.dtype, self.device = dtype, device
        self.wide_dtype = wide_dtype(dtype, device)
        """For products that outgrow float16."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; raises ModelError if it is damaged, or not wanted any more."""
        self._check_wanted()
        return self._source(name)

    def linear(self, names: Sequence[str], *, bias: bool = False, dtype: torch.dtype | None = None) -> Linear:
        """Join products that share their input, by their names without `.weight`, into one.

        Levels that are stored in the format of the layer are taken as they are.

        Args:
            names: of the products.
            bias: whether they have one.
            dtype: of their inputs and outputs; None is that of the model.

        """
        self._check_wanted()
        dtype = dtype or self.dtype
        joined_bias = _joined([self.tensor(f"{name}.bias") for name in names]) if bias else None
        stored = [self._stored(f"{name}.weight") for name in names] if self._stored else []
        parts = [part for part in stored if part is not None]
        if parts and len(parts) == len(stored) and issubclass(self._linear, QuantizedLinear):
            return self._linear.of_stored(parts, joined_bias, dtype)
        return self._new(_joined([self.tensor(f"{name}.weight") for name in names]).to(dtype), joined_bias)

    def linear_of(self, weight: Tensor) -> Linear:
        """Return a product with a weight that was computed from others."""
        return self._new(weight, None)

    def _check_wanted(self) -> None:
        if self._is_cancelled():
            raise ModelError("the engine has been closed")

    def _new(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return (Linear if self._is_prepared else self._linear)(weight, bias)

    def layers(self, build: Callable[[int], Layer], count: int) -> list[Layer]:
        """Build layers 0 to `count` - 1, several at a time: reading is what takes the time."""
        with ThreadPoolExecutor(
            self._readers, thread_name_prefix="weights", initializer=use_device, initargs=(self.device,)
        ) as readers:
            return list(readers.map(build, range(count)))


class CheckpointSource:
    """Reads the tensors of a checkpoint to the device, and merges its adapter."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Read the headers of the files.

        Raises:
            ModelError: one of them is damaged.

        """
        self._dtype, self._stored = dtype, checkpoint.stored
        self._headers = checkpoint.tensors()
        self._reader = TensorReader(checkpoint.name, device)
        self._merge = AdapterMerger(checkpoint.adapter, device) if checkpoint.adapter else None

    def __call__(self, name: str) -> Tensor:
        """Read a tensor, unpacked where it is stored quantized; an adapter is merged in float32 before it is cast.

        Raises:
            ModelError: it, or its update, is damaged.

        """
        tensor = self._dense(name)
        if self._merge is not None:
            tensor = self._merge(name, tensor)
        return tensor.to(self._dtype)

    @property
    def is_prepared(self) -> bool:
        """Whether weights are stored in a format of the engine."""
        return isinstance(self._stored, CompressedFormat)

    @property
    def quantize(self) -> Quantize:
        """The format of the engine in which weights are stored; AWQ words may be int4 of it."""
        if isinstance(self._stored, CompressedFormat):
            return self._stored.kind
        return Quantize.NONE if self._stored is None else Quantize.INT4

    def quantized(self, name: str) -> QuantizedWeight | None:
        """Return a weight as it is stored, in a format of the engine; None where it is not.

        Raises:
            ModelError: it is damaged.

        """
        if self._merge is not None and self._merge.changes(name):
            return None
        module = name.removesuffix("weight")
        if isinstance(self._stored, CompressedFormat) and f"{module}weight_scale" in self._headers:
            return compressed.from_parts(self._stored.kind, lambda part: self._read(module + part))
        if f"{module}qweight" in self._headers:
            return awq.grouped_weight(*self._awq_parts(module))
        return None

    def _dense(self, name: str) -> Tensor:
        """Return a tensor; of one that is stored quantized what it stands for, in float32."""
        module = name.removesuffix("weight")
        if isinstance(self._stored, CompressedFormat) and f"{module}weight_scale" in self._headers:
            weight = compressed.from_parts(self._stored.kind, lambda part: self._read(module + part))
            return compressed.dense_weight(weight)
        return awq.dense_weight(*self._awq_parts(module)) if f"{module}qweight" in self._headers else self._read(name)

    def _awq_parts(self, module: str) -> list[Tensor]:
        """Return words, zeros and scales."""
        return [self._read(module + part) for part in ("qweight", "qzeros", "scales")]

    def _read(self, name: str) -> Tensor:
        return self._reader.read(self._headers[name])


class RandomSource:
    """Draws weights: for measurements, which do not depend on what weights say."""

    _DRAW = 1_000_003  # numbers that are drawn once and repeated; no width divides it

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = shapes
        generator = torch.Generator(device).manual_seed(0)
        self._drawn = torch.randn(self._DRAW, device=device, generator=generator).to(dtype)

    def __call__(self, name: str) -> Tensor:
        """Return a norm of ones, latents with deviation 1, or a weight as transformers would start it."""
        weight = self._drawn.new_empty(self._shapes[name])
        if "norm" in name:
            return weight.fill_(float(name.endswith("weight")))
        scale = 1.0 if name.endswith("latents") else 0.02
        for part in torch.split(weight.view(-1), self._DRAW):
            torch.mul(self._drawn[: len(part)], scale, out=part)
        return weight


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
