"""Encodes the crops of a page, and launches what it has launched before as one CUDA graph."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from idefics_cli.engine.native.models.idefics2 import VisionEncoder
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.records import Crop

_RUNS_BEFORE_RECORDING = 3  # of one shape; pages of rare shapes are not worth a graph
_GRAPHS = 4

_log = logging.getLogger(__name__)


class ImageEncoder:
    """From the crops of a page to its image features.

    Crops of one shape go through together. That is the only company they ever have, so that an encoding depends on its
    page alone.
    """

    def __init__(self, vision: VisionEncoder, ops: Ops, device: torch.device, *, max_projected_patches: int) -> None:
        self._vision, self._ops, self._device = vision, ops, device
        self._max_projected_patches = max_projected_patches
        self._is_recording = device.type == "cuda" and ops is not torch_ops
        self._runs: Counter[tuple[int, ...]] = Counter()
        self._graphs: OrderedDict[tuple[int, ...], _EncodingGraph] = OrderedDict()

    @torch.inference_mode()
    def encode(self, crops: Sequence[Crop]) -> Tensor:
        """Encode the crops of one page: (crops * latents, text width)."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, crop in enumerate(crops):
            by_shape.setdefault(crop.shape, []).append(index)
        encoded: dict[int, Tensor] = {}
        for shape, indices in by_shape.items():
            staged = torch.empty((len(indices), *shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            rows = staged.numpy()
            for row, index in enumerate(indices):
                rows[row] = crops[index]
            encoded.update(zip(indices, self._encode_group(staged), strict=True))
        return torch.cat([encoded[index] for index in range(len(crops))])

    def _encode_group(self, staged: Tensor) -> Tensor:
        """Encode crops of one shape, uint8 (n, height, width, 3) on the host: (n, latents, text width)."""
        shape = tuple(staged.shape)
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape].replay(staged)
        self._runs[shape] += 1
        if self._is_recording and self._runs[shape] > _RUNS_BEFORE_RECORDING and self._record(shape):
            return self._graphs[shape].replay(staged)
        return self._run(staged.to(self._device, non_blocking=True))

    def _run(self, crops: Tensor) -> Tensor:
        return self._vision.encode(crops, self._ops, max_projected_patches=self._max_projected_patches)

    def _record(self, shape: tuple[int, ...]) -> bool:
        """Record the encoding of a shape; says whether memory sufficed."""
        while len(self._graphs) >= _GRAPHS:
            self._graphs.popitem(last=False)
        torch.cuda.empty_cache()  # activations that are kept for launches one by one
        try:
            self._graphs[shape] = _EncodingGraph(self._run, shape, self._device)
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        else:
            return True
        torch.cuda.empty_cache()
        self._is_recording = False
        _log.warning("no memory for CUDA graphs of the vision tower: it is launched kernel by kernel")
        return False


class _EncodingGraph:
    """The encoding of crops of one shape, replayed without the host's launching each kernel."""

    def __init__(self, encode: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> None:
        self._crops = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._features = encode(self._crops)

    def replay(self, staged: Tensor) -> Tensor:
        self._crops.copy_(staged, non_blocking=True)
        self._graph.replay()
        return self._features.clone()
