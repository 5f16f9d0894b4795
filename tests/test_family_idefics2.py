from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor

SIZES = [(757, 980), (300, 200), (1512, 1960), (981, 980), (3000, 40), (2, 900), (1, 1), (979, 1961)]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edges", [(490, 196), (980, 378)])
def test_crops_are_the_stock_processors_pixel_for_pixel(
    size: tuple[int, int], split: bool, edges: tuple[int, int]
) -> None:
    if split and min(size) < 2:
        pytest.skip("the stock processor can't split a page one pixel wide")
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    stock = Idefics2ImageProcessorPil(
        size={"longest_edge": edges[0], "shortest_edge": edges[1]}, do_image_splitting=split
    )
    expected = stock(image, return_tensors="np", do_rescale=False, do_normalize=False)
    crops = Idefics2ImageProcessor(*edges).crops(image, split=split)
    assert len(crops) == expected["pixel_values"].shape[1] == (5 if split else 1)
    for crop, padded in zip(crops, expected["pixel_values"][0], strict=True):
        height, width = crop.shape[:2]
        assert np.array_equal(crop.transpose(2, 0, 1), padded[:, :height, :width])


def test_a_page_one_pixel_wide_is_split_all_the_same() -> None:
    crops = Idefics2ImageProcessor(490, 196).crops(Image.new("RGB", (1, 900)), split=True)
    assert [crop.shape[2] for crop in crops] == [3] * 5


def test_limits() -> None:
    processor = Idefics2ImageProcessor(980, 378)
    assert processor.limited_size(1700, 2200) == (757, 980)
    assert processor.limited_size(500, 600) == (500, 600)
    assert processor.limited_size(100, 2000) == (378, 980)
    assert (processor.render_edge(split=False), processor.render_edge(split=True)) == (980, 1960)
