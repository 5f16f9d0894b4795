from __future__ import annotations

import pytest

from idefics_cli.config import Quantize
from idefics_cli.engine.families.idefics2 import Idefics2Config
from idefics_cli.engine.native.memory_plan import (
    CPU_SEQUENCES,
    GPU_SEQUENCES,
    MemoryPlan,
    WorkSizes,
    layers_at_once,
    plan_memory,
    weight_bytes,
)

EIGHT_BILLION = WorkSizes(slot=131_072, page=5 * 121_000_000, patch=102_400, token=135_000)
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 980,
}


def plan(free: int | None, batch_size: int | None = None) -> MemoryPlan:
    return plan_memory(free, EIGHT_BILLION, batch_size=batch_size, page_tokens=5 * 66, max_new_tokens=64)


@pytest.mark.parametrize("free", [120, 22, 6.5, 6, 4, 2.5, 1.5])
def test_a_plan_fits_the_memory_and_less_memory_plans_less(free: float) -> None:
    made, smaller = plan(int(free * 1e9)), plan(int(free * 0.7e9))
    assert made.bytes(EIGHT_BILLION) <= free * 1e9
    assert smaller.max_num_seqs <= made.max_num_seqs
    assert smaller.bytes(EIGHT_BILLION) <= made.bytes(EIGHT_BILLION)
    assert made.slots > made.max_num_seqs * (5 * 65 + 64)


def test_plans_of_hosts_of_large_cards_and_of_the_users_will() -> None:
    assert plan(None).max_num_seqs == CPU_SEQUENCES
    assert plan(None).max_num_batched_tokens is None
    assert plan(10**11).max_num_seqs == GPU_SEQUENCES
    assert plan(10**11, 200).max_num_seqs == 200
    assert plan(10**9, 200).max_num_seqs == 200  # the engine halves it


@pytest.mark.parametrize("free", [120, 22, 6, 1.5])
def test_a_quarter_of_what_is_spare_keeps_pages(free: float) -> None:
    sizes = {"page_tokens": 5 * 66, "max_new_tokens": 64}
    none, some, many = (
        plan_memory(int(free * 1e9), EIGHT_BILLION, batch_size=None, kept_pages=kept, **sizes)
        for kept in (0, 10, 10**6)
    )
    assert none.slots <= some.slots <= many.slots
    assert some.slots - none.slots == min(10 * 5 * 66, (none.most_slots - none.slots) // 4)
    assert many.slots - none.slots == (none.most_slots - none.slots) // 4
    assert none.most_slots == some.most_slots == many.most_slots
    assert many.bytes(EIGHT_BILLION) <= max(free * 1e9, none.bytes(EIGHT_BILLION))


def test_a_batch_on_the_host_is_held_to_half_of_its_free_memory() -> None:
    def on_host(batch_size: int | None) -> MemoryPlan:
        sizes = {"page_tokens": 5 * 66, "max_new_tokens": 64, "free_host": 16 * 10**9}
        return plan_memory(None, EIGHT_BILLION, batch_size=batch_size, **sizes)

    assert on_host(None).max_num_seqs == CPU_SEQUENCES
    assert on_host(20).max_num_seqs == 20
    assert 1 < on_host(10**6).max_num_seqs < 200
    assert on_host(10**6).slots * EIGHT_BILLION.slot < 8.1e9


def test_tokens_of_a_prefill_batch_never_depend_on_the_memory_or_the_batch() -> None:
    assert (
        len({plan(int(free * 1e9), size).max_num_batched_tokens for free in (2, 6, 120) for size in (None, 1, 7)}) == 1
    )


def test_sizes_at_full_shape() -> None:
    """Keys and values of a position: 2 x 32 layers x 8 heads x 128 x 2 bytes; activations as measured, or a little more."""
    found = WorkSizes.of(Idefics2Config.of({"vision_config": VISION, "text_config": {"vocab_size": 32003}}, "m"), 2)
    assert found.slot == 131_072
    assert found.page == pytest.approx(EIGHT_BILLION.page, rel=0.01)
    assert found.patch == pytest.approx(EIGHT_BILLION.patch, rel=0.01)
    assert found.token == pytest.approx(EIGHT_BILLION.token, rel=0.01)


def test_weights_at_full_shape() -> None:
    config = Idefics2Config.of({"vision_config": VISION, "text_config": {"vocab_size": 32003}}, "m")
    found = {quantize: weight_bytes(config, quantize, 2) / 1e9 for quantize in Quantize if quantize.is_native}
    assert found[Quantize.NONE] == pytest.approx(16.8, abs=0.1)
    assert found[Quantize.FP8] == pytest.approx(8.67, abs=0.05)
    assert found[Quantize.INT8] == pytest.approx(8.80, abs=0.05)
    assert found[Quantize.INT4] == pytest.approx(4.8, abs=0.1)


def test_products_that_are_written_out_have_their_room() -> None:
    config = Idefics2Config.of({"vision_config": VISION, "text_config": {"vocab_size": 32003}}, "m")
    plain, grouped = WorkSizes.of(config, 2), WorkSizes.of(config, 2, Quantize.INT4)
    assert grouped.fixed - plain.fixed == 28672 * 4096 * 2


def test_layers_are_read_one_by_one_where_quantizing_them_all_at_once_would_not_fit() -> None:
    config = Idefics2Config.of({"vision_config": VISION, "text_config": {"vocab_size": 32003}}, "m")
    needed = weight_bytes(config, Quantize.INT4, 2)

    def at_once(gigabytes: float, quantize: Quantize = Quantize.INT4) -> int:
        return layers_at_once(config, quantize, 2, int(gigabytes * 1e9) - needed)

    assert at_once(80) == at_once(6, Quantize.NONE) == layers_at_once(config, Quantize.INT8, 2, None) == 8
    assert 1 < at_once(7.45) < 5
    assert at_once(needed / 1e9) == at_once(1) == 1
