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


def test_rows_of_a_key_that_were_not_all_taken_can_be_chosen_anew() -> None:
    rng = random.Random(2)
    keys = [f"{rng.randrange(3):016x}{rng.randrange(4) * (2**62):016x}" for _ in range(200)]
    there, counts = answered(keys), Counter(keys)
    assert list(there.contested()) == []
    wanted = {key: rng.randrange(count + 1) for key, count in counts.items()}
    for key, count in wanted.items():
        for _ in range(count):
            there.take(key)
    groups = [rows.tolist() for rows in there.contested()]
    some = {key for key, count in wanted.items() if 0 < count < counts[key]}
    assert len(some) > 2
    assert sorted(groups) == sorted([row for row, key in enumerate(keys) if key == one] for one in some)
    for rows in there.contested():
        there.retake(rows, rows >= rows[-2])
        count = wanted[keys[rows[0]]]
        chosen = ([*rows[-2:], *rows[:-2]])[:count]
        assert [there.is_taken(row) for row in rows] == [row in chosen for row in rows]
    assert there.left == len(keys) - sum(wanted.values())
    assert list(Answered().contested()) == []
