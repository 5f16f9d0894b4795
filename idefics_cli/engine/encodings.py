"""Encodes each page once, however many questions ask for it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.engine.clock import Lap, Share
from idefics_cli.engine.operations import Operations
from idefics_cli.engine.schedule import Plan
from idefics_cli.engine.vision import Vision
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Crop, PreparedPage

_KEPT = 256  # a split page of the 8B model takes 2.6 MB in bfloat16
_LAUNCHED_AHEAD = 2  # the device has work, and the host is never far from hearing a signal


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of pages that were to be encoded, by page number."""

    costs: dict[int, list[Share]]
    failures: dict[int, RowFailedError]


class PageEncodings:
    """The latents of pages, by page number; those used last are kept."""

    def __init__(self, vision: Vision, plan: Plan, device: torch.device) -> None:
        self._vision, self._device = vision, device
        self._crops_at_once, self._patches_at_once = plan.crops, plan.patches
        self._latents: OrderedDict[int, Tensor] = OrderedDict()

    def __getitem__(self, page: int) -> Tensor:
        """The latents of an encoded page, (crops * latents, text width)."""
        return self._latents[page]

    def encode(self, pages: Mapping[int, PreparedPage], operations: Operations) -> Encoded:
        """Encode the pages that are new; the device may still be at work when this returns."""
        for number in pages.keys() & self._latents.keys():
            self._latents.move_to_end(number)
        costs: dict[int, list[Share]] = {number: [] for number in pages}
        failures: dict[int, RowFailedError] = {}
        encoded: dict[tuple[int, int], Tensor] = {}
        launched: deque[Lap] = deque()
        for places in _by_shape({n: page for n, page in pages.items() if n not in self._latents}):
            start = 0
            while start < len(places):
                some = places[start : start + self._crops_at_once]
                lap = Lap(self._device)
                latents = self._encoded([pages[number].crops[index] for number, index in some], operations)
                if latents is None and len(some) > 1:
                    self._crops_at_once = len(some) // 2
                    continue
                lap.stop()
                if latents is None:
                    words = "one crop of the page does not fit the GPU's memory"
                    failures[some[0][0]] = RowFailedError(FailureKind.OUT_OF_MEMORY, words)
                else:
                    encoded.update(zip(some, latents, strict=True))
                for number, _ in some:
                    costs[number].append((lap, 1 / len(some)))
                launched.append(lap)
                if len(launched) > _LAUNCHED_AHEAD:
                    launched.popleft().wait()
                start += len(some)
        for number, page in pages.items():
            if number not in self._latents and number not in failures:
                self._latents[number] = torch.cat([encoded[number, index] for index in range(len(page.crops))])
        while len(self._latents) > max(_KEPT, len(pages)):
            self._latents.popitem(last=False)
        return Encoded(costs, failures)

    def _encoded(self, crops: Sequence[Crop], operations: Operations) -> Tensor | None:
        """Encode crops of one shape; None where they do not fit the memory together."""
        try:
            host = torch.empty((len(crops), *crops[0].shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            staged = host.numpy()
            for index, crop in enumerate(crops):
                staged[index] = crop
            on_device = host.to(self._device, non_blocking=True)
            return self._vision.encode(on_device, operations, projected_at_once=self._patches_at_once)
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        torch.cuda.empty_cache()
        return None


def _by_shape(pages: Mapping[int, PreparedPage]) -> Iterable[list[tuple[int, int]]]:
    """Group crops, as page number and index, by their shape."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, page in pages.items():
        for index, crop in enumerate(page.crops):
            groups.setdefault(crop.shape, []).append((number, index))
    return groups.values()
