"""Memory that page processes write crops into: a split page of 14 MB does not pass through a pipe.

Pages that find no slot in it, and systems without anonymous memory files, do with the pipe.
"""

from __future__ import annotations

import ctypes
import heapq
import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from idefics_cli.records import Crop

SLOT_BYTES = 1 << 24
"""Of a slot: what holds five images of a megapixel."""
SLOTS = 448
"""More pages are not on their way at a time; memory is taken as it is used."""

_Bytes = ctypes.c_uint8 * SLOT_BYTES
Buffer = ctypes.Array[ctypes.c_uint8]
"""The bytes of a slot."""


class SharedMemory:
    """Slots for pages; a slot is free again when the last array over it is gone.

    The memory is freed with the last process that has it open, however that ends.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("idefics-cli pages")
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, SLOT_BYTES * SLOTS)
        self._memory = map_memory(self.descriptor)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._free = list(range(SLOTS))
        self._lock = threading.RLock()  # the garbage collector may give back a slot in the midst of `take`

    def take(self) -> tuple[int, Buffer] | None:
        """Return a free slot, the lowest, and its bytes; None where all are taken."""
        with self._lock:
            if not self._free:
                return None
            slot = heapq.heappop(self._free)
        buffer = slot_buffer(self._memory, slot)
        weakref.finalize(buffer, self._give_back, slot)
        return slot, buffer

    def put(self, crops: Sequence[Crop]) -> tuple[int, Buffer] | None:
        """Copy crops into a free slot, which is taken as long as its bytes are held; None where they find no room."""
        if sum(crop.nbytes for crop in crops) > SLOT_BYTES or (taken := self.take()) is None:
            return None
        write_crops(self._memory, taken[0], crops)
        return taken

    def slot_of(self, crops: Sequence[Crop]) -> int | None:
        """Return the slot that crops lie in as `write_crops` writes them; None where they lie elsewhere."""
        places = [crop.__array_interface__["data"][0] - self._start for crop in crops]
        if not places or not 0 <= places[0] < SLOT_BYTES * SLOTS or places[0] % SLOT_BYTES:
            return None
        at = places[0]
        for place, crop in zip(places, crops, strict=True):
            if place != at or not crop.flags.c_contiguous:
                return None
            at += crop.nbytes
        return places[0] // SLOT_BYTES if at <= places[0] + SLOT_BYTES else None

    def _give_back(self, slot: int) -> None:
        with self._lock:
            heapq.heappush(self._free, slot)


def shared_memory() -> SharedMemory | None:
    """Return new memory for pages, where the system has it."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        return SharedMemory()
    except OSError:  # a limit on the size of files counts here too
        return None


def map_memory(descriptor: int) -> mmap.mmap:
    """Map the memory; a process that reads or writes it inherits its descriptor."""
    return mmap.mmap(descriptor, SLOT_BYTES * SLOTS)


def slot_buffer(memory: mmap.mmap, slot: int) -> Buffer:
    """Return the bytes of a slot: arrays over them keep this object, by which it is known when the last is gone."""
    # Arrays keep the ctypes object that they are made of; of a memoryview they keep what lies beneath it.
    return _Bytes.from_buffer(memory, slot * SLOT_BYTES)


def write_crops(memory: mmap.mmap, slot: int, crops: Sequence[Crop]) -> bool:
    """Write crops one after another into a slot; says whether they fit."""
    if sum(crop.nbytes for crop in crops) > SLOT_BYTES:
        return False
    start = slot * SLOT_BYTES
    for crop in crops:
        np.frombuffer(memory, np.uint8, crop.nbytes, start).reshape(crop.shape)[...] = crop
        start += crop.nbytes
    return True


def read_crops(buffer: Buffer, shapes: Sequence[tuple[int, ...]]) -> tuple[Crop, ...]:
    """Return the crops of a slot without copying them; they keep it taken."""
    crops, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        crops.append(np.frombuffer(memoryview(buffer), np.uint8, size, start).reshape(shape))
        start += size
    return tuple(crops)
