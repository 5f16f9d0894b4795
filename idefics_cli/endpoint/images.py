"""Pages as a server takes them: whole images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from idefics_cli.records import Crop

DEFAULT_EDGE = 980
"""Pixels of the longest edge of one image of Idefics2."""


@dataclass(frozen=True, slots=True)
class WholePageProcessor:
    """Leaves pages whole; those with small text stay twice as large, since servers that split them do it by themselves.

    A page within the limit stays as it is, and what is scaled down is scaled as Idefics2's image processor does.
    """

    longest_edge: int
    """In pixels; twice as many of a page with small text (`--split`)."""

    def render_edge(self, *, split: bool) -> int:
        """See `ImageProcessor`."""
        return self.longest_edge * (2 if split else 1)

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        """Return the page as one image."""
        most, (width, height) = self.render_edge(split=split), page.size
        ratio = width / height
        if width >= height and width > most:
            page = page.resize((most, max(1, int(most / ratio))), Image.Resampling.BILINEAR)
        elif height > most:
            page = page.resize((max(1, int(most * ratio)), most), Image.Resampling.BILINEAR)
        return (np.asarray(page),)

    def columns(self, width: int, height: int, *, split: bool) -> int:  # noqa: ARG002 - the signature of the protocol
        """Return 0: there are no sub-images."""
        return 0
