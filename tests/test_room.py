"""The worker with most room, compared with looking at all of them."""

from __future__ import annotations

import random

from idefics_cli.workers.room import Room


def test_the_roomiest_is_found_whatever_was_said_before() -> None:
    rng, room, held = random.Random(1), Room(5), dict[int, int | None]()
    assert room.roomiest() is None
    for _ in range(5000):
        index = rng.randrange(12)
        held[index] = rng.choice([None, 0, 1, 2, 3, 4, 5, 5])
        room.put(index, held[index])
        free = sorted((count, index) for index, count in held.items() if count is not None and count < 5)
        assert room.roomiest() == (free[0][1] if free else None)
        assert room.roomiest_but_one() == (free[1][1] if len(free) > 1 else None)
        assert [index for index in held if index in room] == [i for i, count in held.items() if count in range(5)]
