"""Cuts a page into the images that the vision tower takes, pixel for pixel as the stock Pillow processor does."""

from __future__ import annotations

import numpy as np
from PIL import Image

from idefics_cli.config import ImageGeometry
from idefics_cli.records import Crop


def make_crops(page: Image.Image, *, split: bool, geometry: ImageGeometry) -> tuple[Crop, ...]:
    """Return the crops of an RGB page: itself, or its four quarters and itself when split.

    The quarters are cut from the page as it comes, and each image is then brought within the checkpoint's limits.
    """
    images = [page]
    if split:
        width, height = page.size
        middle_x, middle_y = width // 2, height // 2
        images = [
            page.crop((0, 0, middle_x, middle_y)),
            page.crop((middle_x, 0, width, middle_y)),
            page.crop((0, middle_y, middle_x, height)),
            page.crop((middle_x, middle_y, width, height)),
            page,
        ]
    return tuple(_limited(image, geometry) for image in images)


def limited_size(width: int, height: int, geometry: ImageGeometry) -> tuple[int, int]:
    """Return the width and height of an image within the checkpoint's longest and shortest edge.

    The order of operations is that of `get_resize_output_image_size` in transformers' Idefics2 image processor:
    a very long image is stretched to the shortest edge.
    """
    ratio = width / height
    if width >= height and width > geometry.longest_edge:
        width = geometry.longest_edge
        height = int(width / ratio)
    elif height > width and height > geometry.longest_edge:
        height = geometry.longest_edge
        width = int(height * ratio)
    return max(width, geometry.shortest_edge), max(height, geometry.shortest_edge)


def _limited(image: Image.Image, geometry: ImageGeometry) -> Crop:
    if 0 in image.size:  # a quarter of a page one pixel wide
        image = Image.new("RGB", (max(1, image.width), max(1, image.height)), "white")
    size = limited_size(image.width, image.height, geometry)
    if size != image.size:
        image = image.resize(size, Image.Resampling(geometry.resample))
    return np.asarray(image)
