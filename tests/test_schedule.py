from __future__ import annotations

import itertools

from idefics_cli.engine.schedule import CPU_BATCH, LARGEST_AUTO_BATCH, auto_batch_size, batches


def test_longest_first_and_none_left_out() -> None:
    grouped = batches([5, 90, 7, 90, 6], 2)
    assert grouped == [[1, 3], [2, 4], [0]]
    assert sorted(itertools.chain(*grouped)) == [0, 1, 2, 3, 4]
    assert batches([], 4) == []


def test_auto_batch_size_goes_by_free_memory() -> None:
    assert auto_batch_size(None, 1, 1) == CPU_BATCH
    assert auto_batch_size(0, 1000, 1000) == 1
    assert auto_batch_size(20_000_000, 1000, 1000) == 10
    assert auto_batch_size(10**15, 1000, 1000) == LARGEST_AUTO_BATCH
