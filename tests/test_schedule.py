from __future__ import annotations

import pytest

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine.checkpoint import open_full_shape
from idefics_cli.engine.schedule import CPU_ROWS, GPU_ROWS, Sizes, chunks, graph_rows, is_time_to_admit, plan, sizes

EIGHT_BILLION = Sizes(slot=131_072, crop=121_000_000, patch=102_400, token=135_000, fixed=1 << 29)


@pytest.mark.parametrize("free", [120, 22, 6.5, 6, 4, 2.5, 1.5])
def test_a_plan_fits_the_memory_and_less_memory_plans_less(free: float) -> None:
    made = plan(int(free * 1e9), EIGHT_BILLION, rows=0, crop_tokens=64, max_new_tokens=64)
    smaller = plan(int(free * 0.7e9), EIGHT_BILLION, rows=0, crop_tokens=64, max_new_tokens=64)
    assert made.bytes(EIGHT_BILLION) <= free * 1e9
    assert smaller.rows <= made.rows
    assert smaller.bytes(EIGHT_BILLION) <= made.bytes(EIGHT_BILLION)
    assert made.slots > made.rows * (5 * 65 + 64)


def test_plans_of_hosts_of_large_cards_and_of_the_users_will() -> None:
    assert plan(None, EIGHT_BILLION, rows=0, crop_tokens=64, max_new_tokens=64).rows == CPU_ROWS
    assert plan(10**11, EIGHT_BILLION, rows=0, crop_tokens=64, max_new_tokens=64).rows == GPU_ROWS
    assert plan(10**11, EIGHT_BILLION, rows=200, crop_tokens=64, max_new_tokens=64).rows == 200
    assert plan(10**9, EIGHT_BILLION, rows=200, crop_tokens=64, max_new_tokens=64).rows == 200  # the runner halves it


def test_graphs_have_few_row_counts() -> None:
    assert [graph_rows(rows) for rows in (1, 3, 8, 9, 64, 65, 300)] == [1, 4, 8, 16, 64, 128, 300]


def test_rows_are_admitted_a_quarter_at_a_time_or_when_nothing_else_is_left() -> None:
    assert is_time_to_admit(waiting=5, decoding=0, rows=8)
    assert not is_time_to_admit(waiting=0, decoding=0, rows=8)
    assert not is_time_to_admit(waiting=5, decoding=8, rows=8)
    assert not is_time_to_admit(waiting=5, decoding=7, rows=8)
    assert is_time_to_admit(waiting=5, decoding=6, rows=8)
    assert is_time_to_admit(waiting=1, decoding=7, rows=8)


def test_chunks_keep_the_order_and_the_bound() -> None:
    lengths = [5, 5, 20, 1, 1, 9]
    parts = [lengths[part] for part in chunks(lengths, 10)]
    assert parts == [[5, 5], [20], [1, 1], [9]]
    assert list(chunks([], 10)) == []


def test_sizes_at_full_shape() -> None:
    """Keys and values of a position: 2 x 32 layers x 8 heads x 128 x 2 bytes; activations as measured, or a little more."""
    found = sizes(open_full_shape(ModelSettings(device=Device.CPU, dtype=Dtype.BFLOAT16)).config, 2)
    assert found.slot == 131_072
    assert found.crop == pytest.approx(EIGHT_BILLION.crop, rel=0.01)
    assert found.patch == pytest.approx(EIGHT_BILLION.patch, rel=0.01)
    assert found.token == pytest.approx(EIGHT_BILLION.token, rel=0.01)
