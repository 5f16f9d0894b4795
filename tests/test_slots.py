from __future__ import annotations

import itertools
import random

from idefics_cli.engine.slots import Prefix, SlotTable


def test_runs_are_taken_first_fit_and_joined_when_given_back() -> None:
    table = SlotTable(1, 101)
    assert [table.take(40), table.take(40), table.take(40)] == [1, 41, None]
    table.give_back(1, 40)
    assert table.take(45) is None  # 40 in front and 20 behind
    table.give_back(41, 40)
    assert table.take(100) == 1


def test_a_prefix_is_shared_and_stays_until_its_place_is_needed() -> None:
    table = SlotTable(0, 100)
    first = table.share("page", 60)
    assert first is not None
    first.is_filled = True
    assert table.share("page", 60) is first
    assert table.take(50) is None  # two rows read the prefix
    table.release(first)
    assert table.take(50) is None
    table.release(first)
    assert table.share("page", 60) is first
    table.release(first)
    assert table.take(50) == 0  # it had to go
    again = table.share("page", 40)
    assert again is not None
    assert not again.is_filled


def test_a_prefix_that_was_never_filled_goes_with_its_last_row() -> None:
    table = SlotTable(0, 100)
    prefix = table.share("page", 100)
    assert prefix is not None
    table.release(prefix)
    assert table.take(100) == 0


def test_free_slots_between_prefixes_become_one_run() -> None:
    table = SlotTable(0, 100)
    for number in range(4):
        prefix = table.share(number, 25)
        assert prefix is not None
        prefix.is_filled = True
        table.release(prefix)
    table.forget_unused()
    assert table.take(100) == 0


def test_no_slot_is_ever_given_twice() -> None:
    rng = random.Random(0)
    table, held = SlotTable(1, 500), list[tuple[int, int]]()
    shared: dict[int, list[Prefix]] = {}
    for _ in range(3000):
        if rng.random() < 0.5:
            length = rng.randint(1, 60)
            start = table.take(length)
            if start is not None:
                held.append((start, length))
        elif rng.random() < 0.5:
            key = rng.randint(0, 8)
            found = table.share(key, 30)
            if found is not None:
                found.is_filled = True
                shared.setdefault(key, []).append(found)
        elif held and rng.random() < 0.6:
            table.give_back(*held.pop(rng.randrange(len(held))))
        elif shared:
            key = rng.choice(list(shared))
            table.release(shared[key].pop())
            if not shared[key]:
                del shared[key]
        prefixes: list[Prefix] = [some[0] for some in shared.values()]
        runs = sorted([*held, *((prefix.start, prefix.length) for prefix in prefixes)])
        assert all(start + length <= later for (start, length), (later, _) in itertools.pairwise(runs))
        assert all(start >= 1 and start + length <= 500 for start, length in runs)
