"""Runs the vision model over pages: a CUDA graph for each shape of crops, two pages side by side on a GPU."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from idefics_cli.engine.native.models.siglip import VisionEncoder
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.records import Crop

_RUNS_BEFORE_RECORDING = 2  # of one shape; pages of rare shapes are not worth a graph
_MAX_GRAPHS = 8  # of one lane, least recently used; they share one memory pool

_log = logging.getLogger(__name__)


class ImageEncoder:
    """From the crops of pages to their image features.

    Crops of one page and one shape go through together. That is the only company they ever have, so that an encoding
    depends on its page alone. Pages of one call run side by side, each on a CUDA stream of its own: what the last wave
    of one's kernels leaves idle, the other's fill.
    """

    def __init__(
        self, vision: VisionEncoder, ops: Ops, device: torch.device, *, max_projected_patches: int, lanes: int
    ) -> None:
        """Make so many lanes: the most pages of one call."""

        def encode(crops: Tensor) -> Tensor:
            return vision.encode(crops, ops, max_projected_patches=max_projected_patches)

        is_recording = device.type == "cuda" and ops is not torch_ops
        self._device = device
        self._lanes = [_Lane(encode, device, is_recording=is_recording) for _ in range(lanes)]

    @property
    def max_pages(self) -> int:
        """Pages of one call, at most."""
        return len(self._lanes)

    def release_memory(self) -> None:
        """Drop the graphs, after memory ran out; from now on kernels are launched one by one."""
        for lane in self._lanes:
            lane.drop_graphs()

    @torch.inference_mode()
    def encode(self, pages: Sequence[Sequence[Crop]]) -> list[Tensor]:
        """Encode the crops of pages, at most `max_pages`: (crops * latents, text width) of each."""
        if len(pages) == 1:
            return [self._lanes[0].encode(pages[0])]
        here = torch.cuda.current_stream(self._device)
        features = []
        for lane, crops in zip(self._lanes, pages, strict=False):
            lane.stream.wait_stream(here)
            with torch.cuda.stream(lane.stream):
                features.append(lane.encode(crops))
        for lane, encoded in zip(self._lanes, features, strict=False):
            here.wait_stream(lane.stream)
            encoded.record_stream(here)
        return features


class _Lane:
    """One page at a time, launched kernel by kernel or replayed from graphs."""

    def __init__(self, encode: Callable[[Tensor], Tensor], device: torch.device, *, is_recording: bool) -> None:
        self._encode, self._device, self._is_recording = encode, device, is_recording
        self._runs: Counter[torch.Size] = Counter()
        self._graphs: OrderedDict[torch.Size, _Graph] = OrderedDict()
        if device.type == "cuda":
            self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
            self._pool: Any = torch.cuda.graph_pool_handle()

    def encode(self, crops: Sequence[Crop]) -> Tensor:
        """Encode the crops of one page: (crops * latents, text width)."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, crop in enumerate(crops):
            by_shape.setdefault(crop.shape, []).append(index)
        encoded: dict[int, Tensor] = {}
        for shape, indices in by_shape.items():
            host = torch.empty((len(indices), *shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            staged = host.numpy()
            for row, index in enumerate(indices):
                staged[row] = crops[index]
            encoded.update(zip(indices, self._encode_group(host), strict=True))
        return torch.cat([encoded[index] for index in range(len(crops))])

    def drop_graphs(self) -> None:
        """See `ImageEncoder.release_memory`."""
        self._graphs.clear()
        self._is_recording = False

    def _encode_group(self, host: Tensor) -> Tensor:
        """Encode crops of one shape, uint8 (n, height, width, 3) on the host: (n, latents, text width)."""
        shape = host.shape
        if shape not in self._graphs and self._is_recording:
            self._runs[shape] += 1
            if self._runs[shape] > _RUNS_BEFORE_RECORDING:
                self._record(shape)
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape].replay(host)
        return self._encode(host.to(self._device, non_blocking=True))

    def _record(self, shape: torch.Size) -> None:
        """Record the encoding of a shape, where memory suffices."""
        while len(self._graphs) >= _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        with contextlib.suppress(torch.OutOfMemoryError):
            self._graphs[shape] = _Graph(self._encode, shape, self.stream, self._pool)
            return
        self.drop_graphs()
        torch.cuda.empty_cache()
        _log.warning("no memory for a CUDA graph of the vision encoder: pages are launched kernel by kernel")


class _Graph:
    """The encoding of crops of one shape, replayed without the host's launching each kernel."""

    def __init__(
        self, encode: Callable[[Tensor], Tensor], shape: torch.Size, stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self._crops = torch.zeros(shape, dtype=torch.uint8, device=stream.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self._features = encode(self._crops)

    def replay(self, host: Tensor) -> Tensor:
        """Encode crops of the host; the result is the caller's, the next replay leaves it as it is."""
        self._crops.copy_(host, non_blocking=True)
        self._graph.replay()
        return self._features.clone()
