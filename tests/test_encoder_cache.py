from __future__ import annotations

import torch

from idefics_cli.engine.native.encoder_cache import EncoderCache


def gigabytes(count: float) -> torch.Tensor:
    return torch.empty(int(count * 2**30), dtype=torch.uint8, device="meta")


def test_the_latest_pages_are_kept_up_to_a_gigabyte() -> None:
    cache = EncoderCache()
    for page in "abc":
        cache.put(page, gigabytes(0.4))
    assert ["a" in cache, "b" in cache, "c" in cache] == [False, True, True]
    cache.acquire("b")  # used again: c is the oldest now
    cache.release("b")
    cache.put("d", gigabytes(0.4))
    assert ["b" in cache, "c" in cache, "d" in cache] == [True, False, True]


def test_pages_that_a_sequence_needs_stay_whatever_they_take() -> None:
    cache = EncoderCache()
    for page in "abc":
        cache.acquire(page)
        cache.acquire(page)
        cache.put(page, gigabytes(0.9))
    cache.clear_unused()
    cache.release("a")
    assert all(page in cache for page in "abc")
    cache.release("a")
    assert "a" not in cache
    for page in "bc":
        cache.release(page)
        cache.release(page)
    assert [page in cache for page in "abc"] == [False, False, True]
    cache.clear_unused()
    assert "c" not in cache


def test_bytes_are_counted_right_over_many_pages() -> None:
    cache = EncoderCache()
    for number in range(1000):
        page = str(number % 17)
        cache.acquire(page)
        if page not in cache:
            cache.put(page, gigabytes(0.3 + 0.01 * (number % 5)))
        if number % 7 == 0:
            cache.clear_unused()
        cache.release(page)
    cache.clear_unused()
    for page in "xyz":
        cache.put(page, gigabytes(0.3))
    assert all(page in cache for page in "xyz")
    cache.put("one more", gigabytes(0.3))
    assert ["x" in cache, "y" in cache, "z" in cache, "one more" in cache] == [False, True, True, True]
