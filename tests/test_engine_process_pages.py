"""Slots that are lent to the engine's process."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from idefics_cli.documents.shared_memory import SLOT_BYTES, SLOTS, SharedMemory, read_crops, slot_buffer
from idefics_cli.engine_process.pages import Lender
from idefics_cli.records import PreparedPage

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no anonymous memory files here")
SHAPES = ((20, 30, 3), (7, 5, 3))


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory()


def page(grey: int) -> PreparedPage:
    return PreparedPage(tuple(np.full(shape, grey, np.uint8) for shape in SHAPES), "pillow", 0.0, 0.0, "w", 2)


def lying(memory: SharedMemory, grey: int) -> PreparedPage:
    taken = memory.put(page(grey).crops)
    assert taken is not None
    return PreparedPage(read_crops(taken[1], SHAPES), "pillow", 0.0, 0.0)


def free_slot(memory: SharedMemory) -> int:
    gc.collect()
    taken = memory.take()
    assert taken is not None
    return taken[0]


def test_a_page_in_a_slot_is_sent_as_its_place(memory: SharedMemory) -> None:
    lender, prepared = Lender(memory), lying(memory, 9)
    sent = lender.lend(prepared, "p")
    assert (sent.slot, sent.shapes, sent.page.crops) == (0, SHAPES, ())
    assert all((crop == 9).all() for crop in prepared.crops)


def test_a_slot_is_taken_until_every_loan_of_it_is_returned(memory: SharedMemory) -> None:
    lender, prepared = Lender(memory), lying(memory, 9)
    loans = [lender.lend(prepared, "p").loan for _ in range(2)]
    del prepared
    for left, loan in ((1, loans[0]), (0, loans[1])):
        assert free_slot(memory) == 1
        lender.take_back(loan)
        assert lender.loans == left
    assert free_slot(memory) == 0
    lender.take_back(loans[0])  # twice is no harm


def test_a_page_that_lies_elsewhere_is_copied_once_while_it_is_asked_about(memory: SharedMemory) -> None:
    lender, kept = Lender(memory), page(9)
    first, second = lender.lend(kept, "p"), lender.lend(kept, "p")
    assert first.slot == second.slot == 0
    assert (first.page.warning, first.page.columns) == ("w", 2)
    other = lender.lend(page(10), "q")
    assert other.slot == 1
    for sent, grey in ((first, 9), (other, 10)):
        assert sent.slot is not None
        assert all((crop == grey).all() for crop in read_crops(slot_buffer(memory._memory, sent.slot), SHAPES))
    lender.take_back(first.loan)
    assert free_slot(memory) == 2
    lender.take_back(second.loan)
    assert free_slot(memory) == 0
    assert lender.lend(kept, "p").slot == 0


def test_a_kept_page_is_found_where_a_page_process_wrote_it(memory: SharedMemory) -> None:
    lender = Lender(memory)
    lender.lend(lying(memory, 9), "p")
    assert lender.lend(page(9), "p").slot == 0
    assert free_slot(memory) == 1


def test_what_finds_no_slot_is_sent_whole(memory: SharedMemory) -> None:
    large = PreparedPage((np.zeros((1, SLOT_BYTES + 1, 1), np.uint8),), "pillow", 0.0, 0.0)
    lender = Lender(memory)
    assert lender.lend(large, "large") == (large, None, (), 0)
    taken = [memory.take() for _ in range(SLOTS)]
    kept = page(9)
    assert lender.lend(kept, "p").page is kept
    del taken
    assert Lender(None).lend(kept, "p").page is kept
    assert lender.loans == 0


def test_everything_comes_back_when_the_process_is_gone(memory: SharedMemory) -> None:
    lender = Lender(memory)
    for number in range(5):
        lender.lend(page(number), str(number))
    lender.close()
    assert (lender.loans, free_slot(memory)) == (0, 0)


def test_many_threads_lend_at_once(memory: SharedMemory) -> None:
    lender = Lender(memory)
    pages = [page(number) for number in range(4)]

    def lend_and_return(number: int) -> bool:
        sent = lender.lend(pages[number % 4], str(number % 4))
        assert sent.slot is not None
        (first, _) = read_crops(slot_buffer(memory._memory, sent.slot), SHAPES)
        is_right = bool((first == number % 4).all())
        del first
        lender.take_back(sent.loan)
        return is_right

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lend_and_return, range(400)))
    assert (lender.loans, free_slot(memory)) == (0, 0)
