from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from idefics_cli.config import PageSettings
from idefics_cli.documents.text_size import em_from_ink, em_from_text_layer

SAMPLES = Path(__file__).parent.parent / "samples"


def written(
    size: int, page: tuple[int, int] = (756, 980), text: str = "Total amount due: 1,284.50 on receipt"
) -> Image.Image:
    image = Image.new("RGB", page, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for y in range(20, page[1] - 2 * size, int(size * 1.5)):
        draw.text((20, y), text, fill="black", font=font)
    return image


@pytest.mark.parametrize("size", [12, 16, 24, 36])
def test_ink_measures_the_em_within_a_quarter(size: int) -> None:
    em = em_from_ink(written(size), 490)
    assert em is not None
    assert em == pytest.approx(size / 2, rel=0.25)


@pytest.mark.parametrize("text", ["TOTAL AMOUNT DUE PER INVOICE", "1 284 503 77 294 558 301"])
@pytest.mark.parametrize("size", [13, 16, 30])
def test_capitals_and_figures_are_not_taken_for_larger_letters(size: int, text: str) -> None:
    em = em_from_ink(written(size, text=text), 490)
    assert em is not None
    assert em == pytest.approx(size / 2, rel=0.2)


@pytest.mark.parametrize("size", [30, 36, 42])
def test_dot_leaders_are_not_small_print(size: int) -> None:
    em = em_from_ink(written(size, text="Total due" + "." * 30 + " 17,50"), 490)
    assert em is not None
    assert em > PageSettings().split_em


def test_rules_noise_and_blank_pages_are_no_text() -> None:
    page = Image.new("RGB", (700, 900), "white")
    assert em_from_ink(page, 490) is None
    draw = ImageDraw.Draw(page)
    for y in range(50, 900, 100):
        draw.line((0, y, 700, y), fill="black", width=3)
    draw.line((350, 0, 350, 900), fill="black", width=2)
    assert em_from_ink(page, 490) is None
    noise = np.random.default_rng(0).normal(240, 6, (900, 700)).clip(0, 255).astype(np.uint8)
    assert em_from_ink(Image.fromarray(noise), 490) is None


def test_the_text_layer_goes_by_the_smaller_fifth() -> None:
    assert em_from_text_layer([], 490) is None
    assert em_from_text_layer([0.02] * 100, 490) == pytest.approx(9.8)
    assert em_from_text_layer([0.04] * 70 + [0.01] * 30, 490) == pytest.approx(4.9)
    assert em_from_text_layer([0.04] * 95 + [0.01] * 5, 490) == pytest.approx(19.6)


@pytest.mark.parametrize(("name", "small"), [("small-print.png", True), ("receipt.webp", True), ("notice.bmp", False)])
def test_samples(name: str, small: bool) -> None:
    image = Image.open(SAMPLES / "documents" / name)
    em = em_from_ink(image, 490)
    assert em is not None
    assert (em < PageSettings().split_em) is small


@pytest.mark.slow
def test_a_page_takes_at_most_20_milliseconds() -> None:
    page = written(14, (1512, 1960))
    em_from_ink(page, 490)
    started = time.process_time()
    for _ in range(10):
        em_from_ink(page, 490)
    assert (time.process_time() - started) / 10 < 0.02
