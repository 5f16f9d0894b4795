"""Merges an adapter into the weights that it changes, in float32, whatever they are stored in or cast to after."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics_cli.engine.adapter import Adapter, Update
from idefics_cli.engine.native.tensor_reader import TensorReader


class AdapterMerger:
    """The tensors of an adapter, read when their weight is."""

    def __init__(self, adapter: Adapter, device: torch.device) -> None:
        self._adapter, self._reader = adapter, TensorReader(adapter.name, device)

    def changes(self, name: str) -> bool:
        """Whether it changes a weight."""
        return name in self._adapter.updates

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight with its update merged, in float32; one that has none as it is.

        Raises:
            ModelError: a tensor of the adapter is damaged.

        """
        update = self._adapter.updates.get(name)
        if update is None:
            return weight
        if update.replacement is not None:
            weight = self._tensor(update.replacement)
        weight = weight.float()
        if update.a is None or update.b is None:
            return weight
        return (
            self._merged(weight.t(), update).t().contiguous() if update.is_embedding else self._merged(weight, update)
        )

    def _merged(self, weight: Tensor, update: Update) -> Tensor:
        """Return float32 W + s B A of (out, in ...), of DoRA with each output scaled to its magnitude."""
        assert update.a is not None
        assert update.b is not None
        change = self._tensor(update.b).flatten(1) @ self._tensor(update.a).flatten(1)
        merged = weight.flatten(1) + change * update.scale
        if update.magnitude is not None:
            magnitude = self._tensor(update.magnitude).flatten()
            merged = merged * (magnitude / torch.linalg.vector_norm(merged, dim=1))[:, None]
        return merged.view(weight.shape)

    def _tensor(self, key: str) -> Tensor:
        return self._reader.read(self._adapter.headers[key]).float()
