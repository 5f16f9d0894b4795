"""The images of Idefics2: their sizes, and how a page is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from idefics_cli.engine.families.base import VisionConfig
from idefics_cli.errors import UsageError
from idefics_cli.records import Crop

MAX_CROPS = 5
"""Of a page: its quarters and itself."""


def check_edges(longest: int, shortest: int, vision: VisionConfig) -> None:
    """Refuse edges, in pixels, that the vision encoder has no patches or no positions for; raises UsageError."""
    most = vision.patch_size * vision.positions
    if longest > most:
        raise UsageError(
            f"--longest-edge {longest}: the model has positions for {vision.positions} patches of {vision.patch_size} "
            f"pixels a side: {most} at most"
        )
    if shortest < vision.patch_size:
        raise UsageError(f"--shortest-edge {shortest} is less than a patch: {vision.patch_size} at least")
    if shortest > longest:
        raise UsageError(
            f"the shortest edge, {shortest}, is more than the longest, {longest}: give --longest-edge and "
            "--shortest-edge together"
        )


@dataclass(frozen=True, slots=True)
class Idefics2ImageProcessor:
    """Cuts pages into crops, pixel for pixel as the Pillow image processor of transformers does."""

    longest_edge: int
    """Of one image, in pixels; what is longer is scaled down."""
    shortest_edge: int
    resample: int = int(Image.Resampling.BILINEAR)
    """A Pillow resampling filter."""

    def render_edge(self, *, split: bool) -> int:
        """Return the longest edge, in pixels, at which a page is rendered: more than this would be scaled away."""
        return self.longest_edge * (2 if split else 1)

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        """Return the crops of an RGB page: itself, or its four quarters and itself when split.

        The quarters are cut from the page as it comes, and each image is then brought within the limits.
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
        return tuple(self._limited(image) for image in images)

    def columns(self, width: int, height: int, *, split: bool) -> int:  # noqa: ARG002
        """Return 0: prompts do not say where a sub-image stands."""
        return 0

    def limited_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of an image within the longest and shortest edge.

        The order of operations is that of `get_resize_output_image_size` in transformers' Idefics2 image processor:
        a very long image is stretched to the shortest edge.
        """
        ratio = width / height
        if width >= height and width > self.longest_edge:
            width = self.longest_edge
            height = int(width / ratio)
        elif height > width and height > self.longest_edge:
            height = self.longest_edge
            width = int(height * ratio)
        return max(width, self.shortest_edge), max(height, self.shortest_edge)

    def _limited(self, image: Image.Image) -> Crop:
        if 0 in image.size:  # a quarter of a page one pixel wide
            image = Image.new("RGB", (max(1, image.width), max(1, image.height)), "white")
        size = self.limited_size(image.width, image.height)
        if size != image.size:
            image = image.resize(size, Image.Resampling(self.resample))
        return np.asarray(image)
