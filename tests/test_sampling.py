"""Random numbers by counter, and tokens drawn with them."""

from __future__ import annotations

import pytest
import torch

from idefics_cli.engine.families.generation import random_key
from idefics_cli.engine.native.sampling import draw, uniform

_64 = (1 << 64) - 1


def splitmix64(key: int, count: int) -> float:
    """The published algorithm in Python's own integers."""
    mixed = (key + (count + 1) * 0x9E3779B97F4A7C15) & _64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64
    return float((mixed ^ (mixed >> 31)) >> 11) / 2**53


def test_numbers_are_those_of_splitmix64() -> None:
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789]
    for count in (0, 1, 511):
        found = uniform(torch.tensor(keys), torch.full((len(keys),), count)).tolist()
        assert found == [splitmix64(key, count) for key in keys]
    # The first number of the reference implementation in C for the seed 1234567.
    assert splitmix64(1234567, 0) == (6457827717110365317 >> 11) / 2**53


def test_numbers_are_uniform_over_keys_and_over_steps() -> None:
    keys = torch.tensor([random_key(seed, "What is the total?", ("a:1",)) for seed in range(20_000)])
    over_seeds = uniform(keys, torch.zeros(len(keys), dtype=torch.long))
    over_steps = uniform(torch.zeros(20_000, dtype=torch.long), torch.arange(20_000))
    for numbers in (over_seeds, over_steps):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
        assert ((counts - 1000).abs() < 5 * 1000**0.5).all()


def test_a_key_depends_on_seed_question_and_pages_alone() -> None:
    keys = {random_key(0, "a", ("x",)), random_key(1, "a", ("x",)), random_key(0, "b", ("x",))}
    keys |= {random_key(0, "a", ("y",)), random_key(0, "a", ("x", "y")), random_key(0, "a", ("y", "x"))}
    assert len(keys) == 6
    assert random_key(0, "a", ("x",)) in keys


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    count = 40_000
    keys = torch.tensor([random_key(seed, "q", ()) for seed in range(count)])
    numbers = uniform(keys, torch.zeros(count, dtype=torch.long))
    drawn = torch.bincount(draw(probabilities.log().expand(count, -1), numbers), minlength=6) / count
    assert drawn.tolist() == pytest.approx(probabilities.tolist(), abs=0.01)
    assert drawn[1] == drawn[5] == 0


def test_the_ends_of_the_numbers_draw_tokens_that_are_possible() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1)
    assert draw(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 2]
    assert draw(logits * torch.nan, torch.tensor([0.5, 0.5], dtype=torch.float64)).tolist() == [0, 0]
