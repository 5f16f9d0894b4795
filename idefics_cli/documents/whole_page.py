"""Pages as whole images for other programs: sized, and as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from idefics_cli.records import Crop

_MOST_PNG = 1_500_000  # bytes; servers refuse bodies of a few megabytes
_JPEG_QUALITY = 90
_LONGEST_JPEG_EDGE = 65_500  # pixels, of libjpeg


@dataclass(frozen=True, slots=True)
class WholePage:
    """Makes one image of a page, as an `ImageProcessor`."""

    longest_edge: int
    """In pixels; what is longer is scaled down."""

    def render_edge(self, *, split: bool) -> int:  # noqa: ARG002 - no page is split
        """Return the longest edge, in pixels, at which a page is rendered."""
        return self.longest_edge

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:  # noqa: ARG002
        """Return an RGB page as the one crop."""
        longest = max(page.size)
        if longest > self.longest_edge:
            width, height = (max(1, round(edge * self.longest_edge / longest)) for edge in page.size)
            page = page.resize((width, height), Image.Resampling.LANCZOS)
        return (np.asarray(page),)

    def columns(self, width: int, height: int, *, split: bool) -> int:  # noqa: ARG002
        """Return 0: there are no sub-images."""
        return 0


def data_uri(crop: Crop) -> str:
    """Return an image as a data URI: PNG, which loses nothing, or JPEG where that would be above 1.5 MB.

    An image that is too long for JPEG stays PNG.
    """
    image, kind, data = Image.fromarray(crop), "png", io.BytesIO()
    image.save(data, "PNG")
    if data.tell() > _MOST_PNG and max(image.size) <= _LONGEST_JPEG_EDGE:
        kind, data = "jpeg", io.BytesIO()
        image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(data.getbuffer()).decode()}"
