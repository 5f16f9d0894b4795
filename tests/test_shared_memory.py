from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from idefics_cli.documents.shared_memory import SLOT_BYTES, SLOTS, SharedMemory, map_memory, read_crops, write_crops
from idefics_cli.records import Crop

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no anonymous memory files here")

WRITE = """
import sys
from idefics_cli.documents.shared_memory import map_memory, write_crops
from tests.test_shared_memory import crops
sys.exit(not write_crops(map_memory(int(sys.argv[1])), int(sys.argv[2]), crops()))
"""


def crops() -> list[Crop]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((20, 30, 3), (7, 5, 3))]


def test_crops_written_in_another_process_are_read_here() -> None:
    memory = SharedMemory()
    memory.take()
    slot, buffer = memory.take() or (None, None)
    assert buffer is not None
    command = [sys.executable, "-c", WRITE, str(memory.descriptor), str(slot)]
    subprocess.run(
        command, pass_fds=[memory.descriptor], check=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    for found, expected in zip(read_crops(buffer, [crop.shape for crop in crops()]), crops(), strict=True):
        assert np.array_equal(found, expected)


def test_a_slot_is_free_again_when_its_last_crop_is_gone() -> None:
    memory = SharedMemory()
    taken = [memory.take() for _ in range(SLOTS)]
    assert memory.take() is None
    place = taken.pop(3)
    assert place is not None
    held = read_crops(place[1], [(2, 2, 3)])
    slot = place[0]
    del place
    gc.collect()
    assert memory.take() is None
    del held
    gc.collect()
    again = memory.take()
    assert again is not None
    assert again[0] == slot


def test_a_split_page_of_megapixels_fits_and_what_does_not_is_left_to_the_pipe() -> None:
    memory = SharedMemory()
    mapped = map_memory(memory.descriptor)
    assert write_crops(mapped, SLOTS - 1, [np.zeros((980, 980, 3), np.uint8)] * 5)
    assert not write_crops(mapped, 0, [np.zeros((1, SLOT_BYTES + 1), np.uint8)])


def test_crops_are_known_by_where_they_lie() -> None:
    memory = SharedMemory()
    shapes = [crop.shape for crop in crops()]
    other = memory.take()
    put = memory.put(crops())
    assert put is not None
    slot, buffer = put
    lying = read_crops(buffer, shapes)
    assert all(np.array_equal(found, expected) for found, expected in zip(lying, crops(), strict=True))
    assert memory.slot_of(lying) == memory.slot_of(lying[:1]) == slot == 1
    assert other is not None
    elsewhere = (
        crops(),
        lying[1:],  # not from the beginning
        (lying[1], lying[0]),
        (lying[0][::2],),
        (lying[0][:, :, ::-1],),
        (*lying, crops()[0]),
        (),
    )
    for others in elsewhere:
        assert memory.slot_of(others) is None
    assert SharedMemory().slot_of(lying) is None


def test_crops_that_are_put_are_as_they_were_and_take_a_slot_while_they_are_held() -> None:
    memory = SharedMemory()
    assert memory.put([np.zeros((1, SLOT_BYTES + 1), np.uint8)]) is None
    taken = [memory.put(crops()) for _ in range(SLOTS)]
    assert memory.put(crops()) is None
    del taken
    gc.collect()
    assert memory.put([crop[::2, ::3] for crop in crops()]) is not None
