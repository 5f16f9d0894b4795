from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from idefics_cli.documents.whole_page import WholePage, data_uri


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_page_is_one_image_within_the_longest_edge() -> None:
    page = WholePage(100)
    assert (page.render_edge(split=True), page.longest_edge, page.columns(9, 9, split=True)) == (100, 100, 0)
    sizes = {(400, 200): (100, 50), (200, 400): (50, 100), (60, 30): (60, 30), (9000, 3): (100, 1)}
    for size, wanted in sizes.items():
        (crop,) = page.crops(Image.new("RGB", size), split=False)
        assert crop.shape == (wanted[1], wanted[0], 3)


def test_a_data_uri_is_the_image_to_the_pixel_and_jpeg_where_that_is_large() -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)
    uri = data_uri(small)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(decoded(uri)), small)
    large = rng.integers(0, 255, (1000, 800, 3), dtype=np.uint8)
    uri = data_uri(large)
    assert uri.startswith("data:image/jpeg;base64,")
    assert decoded(uri).size == (800, 1000)
    assert len(uri) < large.nbytes


def test_an_image_that_is_too_long_for_jpeg_stays_png() -> None:
    rng = np.random.default_rng(1)
    for length, kind in ((65_500, "jpeg"), (65_501, "png")):
        strip = rng.integers(0, 255, (10, length, 3), dtype=np.uint8)
        uri = data_uri(strip)
        assert uri.startswith(f"data:image/{kind};base64,")
        assert decoded(uri).size == (length, 10)
