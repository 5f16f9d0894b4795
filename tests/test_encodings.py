from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine import plain
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.encodings import PageEncodings
from idefics_cli.engine.schedule import Plan
from idefics_cli.engine.vision import Vision
from idefics_cli.records import PreparedPage, Request

CPU = torch.device("cpu")
PLAN = Plan(rows=8, slots=100, crops=5, patches=1 << 14, tokens=512)


@pytest.fixture(scope="module")
def vision(tiny_settings: ModelSettings) -> Vision:
    checkpoint = open_checkpoint(tiny_settings)
    return Vision(load_model(checkpoint), checkpoint.normalization, CPU)


@pytest.fixture(scope="module")
def pages(sample_requests: list[Request]) -> dict[int, PreparedPage]:
    return {request.page_ids[0]: request.pages[0] for request in sample_requests[:5]}


def test_pages_are_encoded_once_each_as_alone(vision: Vision, pages: dict[int, PreparedPage]) -> None:
    encodings = PageEncodings(vision, PLAN, CPU)
    first = encodings.encode(pages, plain)
    assert not first.failures
    assert all(sum(part for _, part in first.costs[number]) > 0 for number in pages)
    assert all(cost == [] for cost in encodings.encode(pages, plain).costs.values())
    for number, page in pages.items():
        alone = PageEncodings(vision, dataclasses.replace(PLAN, crops=1), CPU)
        alone.encode({7: page}, plain)
        assert torch.allclose(alone[7], encodings[number], atol=1e-4)


class Full:
    """A vision tower on a card with memory for so many crops, and none for one of a certain height."""

    def __init__(self, vision: Vision, crops: int, height: int = 0) -> None:
        self._vision, self._crops, self._height = vision, crops, height

    def encode(self, crops: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if len(crops) > self._crops or crops.shape[1] == self._height:
            raise torch.OutOfMemoryError("no memory left")
        return self._vision.encode(crops, *arguments, **options)


def test_crops_that_do_not_fit_together_are_halved(vision: Vision, pages: dict[int, PreparedPage]) -> None:
    expected, found = PageEncodings(vision, PLAN, CPU), PageEncodings(Full(vision, 2), PLAN, CPU)  # type: ignore[arg-type]
    expected.encode(pages, plain)
    assert not found.encode(pages, plain).failures
    assert all(torch.allclose(found[number], expected[number], atol=1e-4) for number in pages)


def test_a_page_that_does_not_fit_fails_alone(vision: Vision, pages: dict[int, PreparedPage]) -> None:
    height = pages[3].crops[0].shape[0]
    encodings = PageEncodings(Full(vision, 5, height), PLAN, CPU)  # type: ignore[arg-type]
    failures = encodings.encode(pages, plain).failures
    fails = {number for number, page in pages.items() if any(crop.shape[0] == height for crop in page.crops)}
    assert set(failures) == fails
    assert "out-of-memory" in str(failures[3])
    assert all(encodings[number] is not None for number in pages if number not in fails)
