"""Weights on their way to the device: read, adapted, joined and quantized, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idefics_cli.config import Quantize
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.native import awq
from idefics_cli.engine.native.merge import AdapterMerger
from idefics_cli.engine.native.ops.groupwise import GroupedWeight, join
from idefics_cli.engine.native.ops.linear import Int4Linear, Linear, linear_class
from idefics_cli.errors import ModelError, first_line

_READERS = 4  # threads; more do not read faster from the page cache

Source = Callable[[str], Tensor]
"""Returns a tensor by its name, on the device and in the dtype of the model."""
Layer = TypeVar("Layer")


class Weights:
    """What models are built of. A tensor is read when it is asked for; the parts of a joined product are let go."""

    def __init__(self, source: Source, quantize: Quantize, dtype: torch.dtype, device: torch.device) -> None:
        self._source, self._linear = source, linear_class(quantize)
        self._stored = source.grouped if isinstance(source, CheckpointSource) and quantize is Quantize.INT4 else None
        self.dtype, self.device = dtype, device

    def tensor(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._source(name)

    def linear(self, names: Sequence[str], *, bias: bool = False) -> Linear:
        """Join products that share their input, by their names without `.weight`, into one.

        Levels that are stored in the format of the layer are taken as they are.
        """
        joined_bias = _joined([self._source(f"{name}.bias") for name in names]) if bias else None
        stored = [self._stored(f"{name}.weight") for name in names] if self._stored else []
        kept = [one for one in stored if one is not None]
        if stored and len(kept) == len(stored):
            return Int4Linear.of(join(kept), joined_bias, self.dtype)
        return self._linear(_joined([self._source(f"{name}.weight") for name in names]), joined_bias)

    def linear_of(self, weight: Tensor) -> Linear:
        """Return a product with a weight that was computed from others."""
        return self._linear(weight)

    def layers(self, build: Callable[[int], Layer], count: int) -> list[Layer]:
        """Build layers 0 to `count` - 1, several at a time: reading is what takes the time."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="weights") as readers:
            return list(readers.map(build, range(count)))


class CheckpointSource:
    """Reads the tensors of a checkpoint from the mapped files straight to the device, and merges its adapter."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Map the files.

        Raises:
            ModelError: one of them is damaged.

        """
        self._name, self._dtype = checkpoint.name, dtype
        headers = checkpoint.tensors()
        try:
            files = {
                file: safe_open(file, framework="pt", device=str(device))
                for file in {header.file for header in headers.values()}
            }
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self._name}: the weights can't be read: {first_line(error)}") from error
        self._files = {name: files[header.file] for name, header in headers.items()}
        self._merge = AdapterMerger(checkpoint.adapter, device) if checkpoint.adapter else None

    def __call__(self, name: str) -> Tensor:
        """Read a tensor, of AWQ words unpacked; what an adapter changes is changed in float32, and then cast.

        Raises:
            ModelError: it, or its update, is damaged.

        """
        tensor = self._dense(name)
        if self._merge is not None:
            tensor = self._merge(name, tensor)
        return tensor.to(self._dtype)

    def grouped(self, name: str) -> GroupedWeight | None:
        """Return a weight with the integer levels that are stored; None where there are none that could be kept.

        Raises:
            ModelError: it is damaged.

        """
        if not self._is_awq(name) or (self._merge is not None and self._merge.changes(name)):
            return None
        return awq.grouped_weight(*self._awq_parts(name))

    def _dense(self, name: str) -> Tensor:
        return awq.dense_weight(*self._awq_parts(name)) if self._is_awq(name) else self._read(name)

    def _is_awq(self, name: str) -> bool:
        return name.removesuffix("weight") + "qweight" in self._files

    def _awq_parts(self, name: str) -> list[Tensor]:
        """Return words, zeros and scales."""
        return [self._read(name.removesuffix("weight") + part) for part in ("qweight", "qzeros", "scales")]

    def _read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._files[name].get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise ModelError(f"{self._name}: {name} can't be read: {first_line(error)}") from error
        return tensor


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
