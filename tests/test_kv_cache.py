from __future__ import annotations

import itertools
import random

from idefics_cli.engine.native.kv_cache import KVCacheManager, Prefix


def test_ranges_are_taken_first_fit_and_joined_when_freed() -> None:
    slots = KVCacheManager(1, 101)
    assert [slots.allocate(40), slots.allocate(40), slots.allocate(40)] == [1, 41, None]
    slots.free(1, 40)
    assert slots.allocate(45) is None  # 40 in front and 20 behind
    slots.free(41, 40)
    assert slots.allocate(100) == 1


def test_a_prefix_is_shared_and_stays_until_its_room_is_needed() -> None:
    slots = KVCacheManager(0, 100)
    first = slots.acquire_prefix("page", 60)
    assert first is not None
    first.is_filled = True
    assert slots.acquire_prefix("page", 60) is first
    assert slots.allocate(50) is None  # two sequences read the prefix
    slots.release_prefix(first)
    assert slots.allocate(50) is None
    slots.release_prefix(first)
    assert slots.acquire_prefix("page", 60) is first
    slots.release_prefix(first)
    assert slots.allocate(50) == 0  # it had to go
    again = slots.acquire_prefix("page", 40)
    assert again is not None
    assert not again.is_filled


def test_a_prefix_that_was_never_filled_goes_with_its_last_sequence() -> None:
    slots = KVCacheManager(0, 100)
    prefix = slots.acquire_prefix("page", 100)
    assert prefix is not None
    slots.release_prefix(prefix)
    assert slots.allocate(100) == 0


def test_free_slots_between_prefixes_become_one_range() -> None:
    slots = KVCacheManager(0, 100)
    for number in range(4):
        prefix = slots.acquire_prefix(number, 25)
        assert prefix is not None
        prefix.is_filled = True
        slots.release_prefix(prefix)
    slots.evict_unused()
    assert slots.allocate(100) == 0


def test_no_slot_is_ever_given_twice() -> None:
    rng = random.Random(0)
    slots, held = KVCacheManager(1, 500), list[tuple[int, int]]()
    shared: dict[int, list[Prefix]] = {}
    for _ in range(3000):
        if rng.random() < 0.5:
            length = rng.randint(1, 60)
            start = slots.allocate(length)
            if start is not None:
                held.append((start, length))
        elif rng.random() < 0.5:
            key = rng.randint(0, 8)
            found = slots.acquire_prefix(key, 30)
            if found is not None:
                found.is_filled = True
                shared.setdefault(key, []).append(found)
        elif held and rng.random() < 0.6:
            slots.free(*held.pop(rng.randrange(len(held))))
        elif shared:
            key = rng.choice(list(shared))
            slots.release_prefix(shared[key].pop())
            if not shared[key]:
                del shared[key]
        prefixes: list[Prefix] = [some[0] for some in shared.values()]
        runs = sorted([*held, *((prefix.start, prefix.length) for prefix in prefixes)])
        assert all(start + length <= later for (start, length), (later, _) in itertools.pairwise(runs))
        assert all(start >= 1 and start + length <= 500 for start, length in runs)


def test_prefixes_with_the_same_head_share_it_and_keep_it() -> None:
    slots = KVCacheManager(0, 100)
    one, other = (slots.acquire_prefix(key, 30, ("examples", 20)) for key in "ab")
    assert one is not None
    assert other is not None
    head = one.head
    assert head is not None
    assert head is other.head
    assert (head.key, head.length, head.references) == ("examples", 20, 2)
    for prefix in (one, other, head):
        prefix.is_filled = True
    assert slots.allocate(21) is None
    slots.release_prefix(one)
    slots.release_prefix(other)
    assert slots.allocate(60) is not None  # in the place of `a` alone
    third = slots.acquire_prefix("c", 20, ("examples", 20))
    assert third is None or third.head is head


def test_a_head_that_was_never_filled_goes_with_the_prefix_that_wanted_it() -> None:
    slots = KVCacheManager(0, 100)
    prefix = slots.acquire_prefix("page", 60, ("examples", 40))
    assert prefix is not None
    assert slots.allocate(1) is None
    slots.release_prefix(prefix)
    assert slots.allocate(100) == 0


def test_a_prefix_that_does_not_fit_beside_its_head_takes_neither() -> None:
    slots = KVCacheManager(0, 100)
    assert slots.acquire_prefix("page", 70, ("examples", 40)) is None
    assert slots.allocate(100) == 0


def test_all_unused_prefixes_go_and_their_heads_behind_them() -> None:
    slots = KVCacheManager(0, 100)
    for key in "ab":
        prefix = slots.acquire_prefix(key, 30, ("examples", 20))
        assert prefix is not None
        assert prefix.head is not None
        prefix.is_filled = prefix.head.is_filled = True
        slots.release_prefix(prefix)
    slots.evict_unused()
    assert slots.allocate(100) == 0
