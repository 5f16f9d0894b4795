from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from idefics_cli.results.answered import Answered, KeyList


def answered(keys: list[str]) -> Answered:
    collected = KeyList()
    for key in keys:
        collected.add(key)
    return collected.answered()


def test_nothing_is_there_at_first() -> None:
    assert not Answered().take("0" * 32)
    assert len(Answered()) == Answered().left == 0


def test_each_row_is_taken_once_and_equal_keys_in_the_order_of_their_rows() -> None:
    rng = random.Random(1)
    # Few values in each half: equal keys, and keys that share only their upper half.
    keys = [f"{rng.randrange(3):016x}{rng.randrange(4) * (2**62):016x}" for _ in range(500)]
    there, counts = answered(keys), Counter(keys)
    for key, count in counts.items():
        rows = [row for row, other in enumerate(keys) if other == key]
        for taken in range(count):
            assert there.take(key)
            assert [there.is_taken(row) for row in rows] == [True] * (taken + 1) + [False] * (count - taken - 1)
        assert not there.take(key)
    assert there.left == 0
    assert not there.take("f" * 32)


def test_a_hundred_thousand_equal_keys_take_no_long_time() -> None:
    there = answered(["ab" * 16] * 100_000)
    started = time.process_time()
    assert all(there.take("ab" * 16) for _ in range(100_000))
    assert time.process_time() - started < 5
    assert there.left == 0


@pytest.mark.parametrize("key", ["", "ab", "x" * 32, "ab" * 17])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"key|hexadecimal"):
        KeyList().add(key)
