from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from idefics_cli.prefetch import prefetch


def test_items_come_in_order_and_one_is_made_while_one_is_used() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    seen = []
    for item in prefetch(source(), 1):
        seen.append(item)
        time.sleep(0.02)
        assert len(made) <= item + 2
    assert seen == list(range(5))
    assert list(prefetch([], 1)) == []


def test_an_error_of_the_source_is_raised_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("line 2")

    stream = prefetch(source(), 1)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="line 2"):
        next(stream)


def test_a_caller_that_stops_leaves_no_thread_at_work() -> None:
    def source() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    before = set(threading.enumerate())  # other tests' threads may still be ending
    stream = prefetch(source(), 1)
    assert next(stream) == 0
    assert any(thread.name == "prefetch" for thread in set(threading.enumerate()) - before)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
