"""Memory that page processes write crops into: a split page of 11 MB does not pass through a pipe.

Pages that find no place in it, and systems without anonymous memory files, do with the pipe.
"""

from __future__ import annotations

import ctypes
import heapq
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from idefics_cli.records import Crop

_SLOT = 5 * 980 * 980 * 3  # bytes of a split page at the largest size of the published checkpoints
_SLOTS = 448  # three windows of the engine and some more; memory is taken as it is used

_Bytes = ctypes.c_uint8 * _SLOT
Place = ctypes.Array[ctypes.c_uint8]
"""The bytes of a slot."""
Handle = tuple[int, int]
"""Process and file descriptor, by which another process opens the memory."""


class PageMemory:
    """Slots for pages; a slot is free again when the last array over it is gone."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("idefics-cli pages")
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, _SLOT * _SLOTS)
        self.handle: Handle = (os.getpid(), descriptor)
        self._memory = mmap.mmap(descriptor, _SLOT * _SLOTS)
        self._free = list(range(_SLOTS))
        self._lock = threading.Lock()

    def take(self) -> tuple[int, Place] | None:
        """Return a free slot, the lowest, and its place; None where all are taken."""
        with self._lock:
            if not self._free:
                return None
            slot = heapq.heappop(self._free)
        # Arrays keep the ctypes object that they are made of; of a memoryview they keep what lies beneath it.
        place = _Bytes.from_buffer(self._memory, slot * _SLOT)
        weakref.finalize(place, self._give_back, slot)
        return slot, place

    def _give_back(self, slot: int) -> None:
        with self._lock:
            heapq.heappush(self._free, slot)


def shared_memory() -> PageMemory | None:
    """Return new memory for pages, where the system has it."""
    if not hasattr(os, "memfd_create") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return PageMemory()
    except OSError:  # a limit on the size of files counts here too
        return None


def open_memory(handle: Handle) -> mmap.mmap | None:
    """Open another process's memory; None where that is not allowed."""
    process, descriptor = handle
    try:
        with Path(f"/proc/{process}/fd/{descriptor}").open("r+b") as file:
            return mmap.mmap(file.fileno(), _SLOT * _SLOTS)
    except OSError:
        return None


def write_crops(memory: mmap.mmap, slot: int, crops: Sequence[Crop]) -> bool:
    """Write crops one after another into a slot; says whether they fit."""
    if sum(crop.nbytes for crop in crops) > _SLOT:
        return False
    start = slot * _SLOT
    for crop in crops:
        np.frombuffer(memory, np.uint8, crop.nbytes, start).reshape(crop.shape)[...] = crop
        start += crop.nbytes
    return True


def read_crops(place: Place, shapes: Sequence[tuple[int, ...]]) -> tuple[Crop, ...]:
    """Return the crops of a slot, in place; they keep it taken."""
    crops, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        crops.append(np.frombuffer(memoryview(place), np.uint8, size, start).reshape(shape))
        start += size
    return tuple(crops)
