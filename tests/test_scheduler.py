from __future__ import annotations

import random

import pytest

from idefics_cli.engine.families.base import Prompt
from idefics_cli.engine.native.kv_cache import KVCacheManager
from idefics_cli.engine.native.scheduler import Action, Scheduler
from idefics_cli.engine.native.sequence import Sequence


def sequence(*pages: str, length: int = 10) -> Sequence:
    return Sequence(Prompt(tuple(range(length)), 6), {}, pages or ("p",))


def ready(scheduler: Scheduler, count: int) -> list[Sequence]:
    made = [sequence() for _ in range(count)]
    for one in made:
        scheduler.add(one, [])
    return made


def test_nothing_to_do() -> None:
    scheduler = Scheduler(8, 4)
    assert not scheduler.has_work
    assert scheduler.next_action() is Action.NOTHING


def test_a_page_is_encoded_for_all_that_wait_for_it() -> None:
    scheduler = Scheduler(8, 4)
    first, second, third = sequence("a", "b"), sequence("b"), sequence("c")
    for one in (first, second, third):
        scheduler.add(one, one.page_ids)
    assert scheduler.next_action() is Action.ENCODE
    assert scheduler.next_pages(1) == [("a", [first])]
    assert scheduler.next_pages(2) == [("a", [first]), ("b", [first, second])]
    scheduler.page_encoded("a", [first])
    assert scheduler.next_pages(9) == [("b", [first, second]), ("c", [third])]
    scheduler.page_encoded("b", [first, second])
    assert list(scheduler.ready) == [first, second]
    assert scheduler.drop([third, first]) == [third]
    scheduler.page_encoded("c", [third])
    assert list(scheduler.ready) == [first, second]
    assert scheduler.next_action() is Action.PREFILL


@pytest.mark.parametrize(
    ("waiting", "count", "running", "action"),
    [
        (5, 1, 0, Action.ENCODE),
        (5, 2, 0, Action.ENCODE),
        (9, 8, 0, Action.PREFILL),  # all of the batch's room
        (0, 1, 0, Action.PREFILL),  # nothing is left to encode
        (5, 1, 7, Action.DECODE),  # less than a quarter of the batch is free
        (1, 0, 7, Action.ENCODE),  # there is room for all that are pending
        (0, 1, 7, Action.PREFILL),
        (5, 1, 4, Action.ENCODE),
        (5, 4, 4, Action.PREFILL),
        (5, 4, 8, Action.DECODE),  # no room
        (0, 0, 3, Action.DECODE),
    ],
)
def test_the_batch_is_filled_before_it_is_prefilled(waiting: int, count: int, running: int, action: Action) -> None:
    scheduler = Scheduler(8, 4)
    ready(scheduler, running)
    assert len(scheduler.admit(KVCacheManager(1, 1000))) == running
    ready(scheduler, count)
    for number in range(waiting):
        scheduler.add(sequence(f"w{number}"), [f"w{number}"])
    assert scheduler.next_action() is action


def shared(max_num_seqs: int, running: int, waiting: str) -> tuple[Scheduler, KVCacheManager]:
    """Return one of many clients, so many of whose sequences run and whose others wait for a page each."""
    cache, scheduler = KVCacheManager(1, 1000), Scheduler(max_num_seqs, 4, is_padded=True, is_shared=True)
    ready(scheduler, running)
    scheduler.admit(cache)
    for name in waiting:
        scheduler.add(sequence(name), [name])
    return scheduler, cache


def encode_one(scheduler: Scheduler) -> None:
    ((page, users),) = scheduler.next_pages(1)
    scheduler.page_encoded(page, users)


def steps_until(scheduler: Scheduler, action: Action) -> int:
    """Return how many steps of decoding come before something else, which has to be this."""
    for steps in range(100):
        if (found := scheduler.next_action()) is not Action.DECODE:
            assert found is action
            return steps
        scheduler.decoded()
    raise AssertionError(f"no {action}")


def test_sequences_that_come_one_by_one_are_prefilled_every_few_steps() -> None:
    cache, scheduler = KVCacheManager(1, 1000), Scheduler(8, 4, is_padded=True)
    for _ in range(2):
        ready(scheduler, 1)
        assert steps_until(scheduler, Action.PREFILL) == 0  # the few that are running lose little by it
        scheduler.admit(cache)
    ready(scheduler, 1)
    assert steps_until(scheduler, Action.PREFILL) == 4
    scheduler.admit(cache)
    ready(scheduler, 2)
    assert steps_until(scheduler, Action.PREFILL) == 0  # a quarter of the batch does not wait


def test_those_that_run_go_on_between_encodings_where_all_have_room() -> None:
    scheduler, cache = shared(8, 4, "abcd")
    for name in "abcd":
        assert steps_until(scheduler, Action.ENCODE) == (0 if name == "a" else 5)
        encode_one(scheduler)
        assert steps_until(scheduler, Action.PREFILL) == 0
        scheduler.admit(cache)


@pytest.mark.parametrize(
    ("max_num_seqs", "running", "waiting", "encoded"),
    [
        pytest.param(16, 5, "abcdefgh", 4, id="few that run wait for a quarter of the batch"),
        pytest.param(8, 6, "abcde", 2, id="all that is free where more wait than have room"),
    ],
)
def test_so_many_pages_are_encoded_before_a_prefill(
    max_num_seqs: int, running: int, waiting: str, encoded: int
) -> None:
    scheduler, _ = shared(max_num_seqs, running, waiting)
    for _ in range(encoded):
        assert scheduler.next_action() is Action.ENCODE
        encode_one(scheduler)
    assert scheduler.next_action() is Action.PREFILL


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 5, 16])
def test_all_that_come_are_answered_however_they_come(max_num_seqs: int, is_padded: bool, is_shared: bool) -> None:
    random_ = random.Random(max_num_seqs)
    cache, scheduler = KVCacheManager(1, 10_000), Scheduler(max_num_seqs, 4, is_padded=is_padded, is_shared=is_shared)
    left: dict[Sequence, int] = {}  # steps
    asked = answered = 0
    while answered < 200:
        for _ in range(random_.choice((0, 0, 1, 3, 40)) if asked < 200 else 0):
            one = sequence(f"page {asked // 3}")
            left[one] = random_.randint(1, 16)
            scheduler.add(one, random_.choice(([], [one.page_ids[0]])))
            asked += 1
        action = scheduler.next_action()
        if action is Action.ENCODE:
            for page, users in scheduler.next_pages(2):
                scheduler.page_encoded(page, users)
        elif action is Action.PREFILL:
            assert scheduler.admit(cache)
        elif action is Action.DECODE:
            assert scheduler.running
            scheduler.decoded()
            for index, one in list(scheduler.running.items()):
                left[one] -= 1
                if not left[one]:
                    answered += 1
                    scheduler.free(index, cache)
        else:
            assert not scheduler.has_work


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_new_page_comes_in_turn_among_clients_who_keep_the_batch_full(is_padded: bool, is_shared: bool) -> None:
    """More than there is room for ask about pages that are encoded, again and again."""
    cache, scheduler = KVCacheManager(1, 10_000), Scheduler(4, 4, is_padded=is_padded, is_shared=is_shared)
    ready(scheduler, 12)
    new = sequence("new")
    scheduler.add(new, ["new"])
    left: dict[Sequence, int] = {}
    for _ in range(100):
        action = scheduler.next_action()
        if action is Action.ENCODE:
            for page, users in scheduler.next_pages(1):
                scheduler.page_encoded(page, users)
        elif action is Action.PREFILL:
            for index in scheduler.admit(cache):
                left[scheduler.running[index]] = 1 + index
        else:
            scheduler.decoded()
            for index, one in list(scheduler.running.items()):
                left[one] -= 1
                if not left[one]:
                    scheduler.free(index, cache)
                    ready(scheduler, 1)
    assert left.get(new) == 0


def test_sequences_are_admitted_in_order_while_there_are_room_and_slots() -> None:
    cache, scheduler = KVCacheManager(0, 6 + 2 * 8), Scheduler(3, 4)  # a prefix of 6, two suffixes of 4 + 4
    first, second, third = ready(scheduler, 3)
    assert scheduler.admit(cache) == [0, 1]
    assert list(scheduler.running.values()) == [first, second]
    assert first.prefix is second.prefix
    assert scheduler.admit(cache) == []
    assert scheduler.free(0, cache) is first
    assert scheduler.admit(cache) == [0]
    assert scheduler.running[0] is third


def test_a_suffix_without_room_leaves_no_reference_to_its_prefix() -> None:
    cache, scheduler = KVCacheManager(0, 10), Scheduler(3, 4)
    ready(scheduler, 1)
    assert scheduler.admit(cache) == []
    assert cache.allocate(10) == 0


def test_preempted_sequences_start_anew_in_order_half_as_many_together() -> None:
    cache, scheduler = KVCacheManager(0, 1000), Scheduler(8, 4)
    made = ready(scheduler, 5)
    indices = scheduler.admit(cache)
    scheduler.preempt(indices, cache)
    assert scheduler.max_num_seqs == 2
    assert list(scheduler.ready) == made
    assert all(one.is_preempted and one.prefix is None for one in made)
    assert cache.allocate(1000) == 0
    cache.free(0, 1000)
    assert len(scheduler.admit(cache)) == 2
    assert scheduler.slots_of(made[0]) == 14
