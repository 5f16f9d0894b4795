from __future__ import annotations

import gc
import multiprocessing
import os
from multiprocessing.connection import Connection

import numpy as np
import pytest

from idefics_cli.documents import memory
from idefics_cli.documents.memory import Handle, PageMemory, open_memory, read_crops, write_crops
from idefics_cli.records import Crop

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no anonymous memory files here")


def crops() -> list[Crop]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((20, 30, 3), (7, 5, 3))]


def write(handle: Handle, slot: int, answer: Connection) -> None:
    opened = open_memory(handle)
    answer.send(opened is not None and write_crops(opened, slot, crops()))


def test_crops_written_in_another_process_are_read_here() -> None:
    pages = PageMemory()
    slot, place = pages.take() or (None, None)
    assert slot is not None
    assert place is not None
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=write, args=(pages.handle, slot, there))
    process.start()
    assert here.recv()
    process.join()
    for found, expected in zip(read_crops(place, [crop.shape for crop in crops()]), crops(), strict=True):
        assert np.array_equal(found, expected)


def test_a_slot_is_free_again_when_its_last_crop_is_gone() -> None:
    pages = PageMemory()
    taken = [pages.take() for _ in range(memory._SLOTS)]
    assert pages.take() is None
    place = taken.pop(3)
    assert place is not None
    held = read_crops(place[1], [(2, 2, 3)])
    slot = place[0]
    del place
    gc.collect()
    assert pages.take() is None
    del held
    gc.collect()
    again = pages.take()
    assert again is not None
    assert again[0] == slot


def test_what_does_not_fit_is_left_to_the_pipe() -> None:
    pages = PageMemory()
    opened = open_memory(pages.handle)
    assert opened is not None
    assert not write_crops(opened, 0, [np.zeros((5000, 5000, 3), np.uint8)])
    assert open_memory((2**22 + 1, 3)) is None
