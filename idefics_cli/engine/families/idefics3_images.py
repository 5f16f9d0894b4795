"""The images of Idefics3 and SmolVLM: a grid of square tiles, and the whole page squeezed into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from idefics_cli.engine.families.base import VisionConfig
from idefics_cli.errors import UsageError
from idefics_cli.records import Crop

MOST_EDGE = 4096
"""Beyond which transformers' image processor scales down."""
_MOST_TILES = 6
"""A side: what its processor has marks of rows and columns for."""


def check_edge(longest: int, tile: int) -> None:
    """Refuse an edge, in pixels, that is less than a tile or more than there are marks for; raises UsageError."""
    most = min(_MOST_TILES * tile, MOST_EDGE)
    if not tile <= longest <= most:
        raise UsageError(f"--longest-edge {longest}: this model takes {tile}, one tile, to {most}")


def check_tile(tile: int, scale: int, vision: VisionConfig) -> None:
    """Refuse tiles that can't be brought to image tokens; pixels behind whole patches are dropped.

    Raises:
        ValueError: it can't be done.

    """
    patches = tile // vision.patch_size
    if not patches or patches % scale or patches > vision.positions:
        raise ValueError(
            f"max_image_size {tile}: {patches} patches of {vision.patch_size} pixels a side are no multiple of "
            f"{scale}, or more than the model's {vision.positions}"
        )


@dataclass(frozen=True, slots=True)
class Idefics3ImageProcessor:
    """Cuts pages into tiles, pixel for pixel as the Pillow image processor of transformers does."""

    page_edge: int
    """To which the longest edge of a page is scaled, up or down, in pixels."""
    tile: int
    """Side of a tile, in pixels."""
    resample: int = int(Image.Resampling.LANCZOS)
    """A Pillow resampling filter."""

    @property
    def longest_edge(self) -> int:
        """Of one image, in pixels: a tile's."""
        return self.tile

    def render_edge(self, *, split: bool) -> int:  # noqa: ARG002 - a page is scaled before it is squeezed too
        """Return the longest edge, in pixels, at which a page is rendered."""
        return self.page_edge

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        """Return an RGB page squeezed into one tile or, when split, its tiles row by row before that.

        The page is scaled to `page_edge` first and, when split, to whole tiles, by which its aspect ratio changes.
        """
        page = self._resized(page, self.scaled_size(*page.size))
        images = []
        if split:
            page = self._resized(page, self.tiled_size(*page.size))
            if max(page.size) > self.tile:
                corners = [(x, y) for y in range(0, page.height, self.tile) for x in range(0, page.width, self.tile)]
                images = [page.crop((x, y, x + self.tile, y + self.tile)) for x, y in corners]
        images.append(self._resized(page, (self.tile, self.tile)))
        return tuple(np.asarray(image) for image in images)

    def columns(self, width: int, height: int, *, split: bool) -> int:
        """Return in how many columns the tiles of a page stand; 0 where it is one tile."""
        tiled = self.tiled_size(*self.scaled_size(width, height))
        return tiled[0] // self.tile if split and max(tiled) > self.tile else 0

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of a page whose longest edge is `page_edge`; the other is even, and 1 at least.

        The order of operations is that of `get_resize_output_image_size` in transformers' Idefics3 image processor.
        """
        ratio = width / height
        if width >= height:
            width, height = self.page_edge, int(self.page_edge / ratio)
            height += height % 2
        else:
            width, height = int(self.page_edge * ratio), self.page_edge
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        ratio = width / height
        if width >= height and width > MOST_EDGE:
            width, height = MOST_EDGE, int(MOST_EDGE / ratio)
        elif height > width and height > MOST_EDGE:
            width, height = int(MOST_EDGE * ratio), MOST_EDGE
        return max(width, 1), max(height, 1)

    def tiled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height up to whole tiles, the longer edge first, as `resize_for_vision_encoder` does."""
        ratio = width / height
        if width >= height:
            width = self._whole(width)
            return width, self._whole(int(width / ratio))
        height = self._whole(height)
        return self._whole(int(height * ratio)), height

    def _whole(self, edge: int) -> int:
        return max(1, math.ceil(edge / self.tile)) * self.tile

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image if image.size == size else image.resize(size, Image.Resampling(self.resample))
