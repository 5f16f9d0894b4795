"""Decides whether a page has text that one image would show too small to read.

The measure is the em of the page's smaller text in pixels of one unsplit image: from the text layer of a PDF where
there is one, from the ink otherwise. `samples/split-threshold.md` says how the threshold was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SMALL_SHARE = 0.2  # a page counts as small when a fifth of its text is
_STRIP = 32  # pixels: narrow, so that lines of neighbouring columns and slight rotation do not merge
_INK_EDGE = 1024  # the longest edge at which ink is looked at: keeps the cost bounded
_LINE_TO_EM = 1.9  # em over the height of the lower runs, which are lines without ascenders: the x-height is 0.53 em


def em_from_text_layer(ems: Sequence[float], longest_edge: int) -> float | None:
    """Return the em of the smaller text in pixels of an image `longest_edge` long; None without text.

    Args:
        ems: em of sampled characters as shares of the page's longest edge.
        longest_edge: of one unsplit image, in pixels.

    """
    if not ems:
        return None
    return float(np.quantile(np.asarray(ems), _SMALL_SHARE)) * longest_edge


def em_from_ink(page: Image.Image, longest_edge: int) -> float | None:
    """Estimate the same em from the pixels of a page; None where no text-like ink stands.

    The page is cut into narrow vertical strips; in each, the runs of rows that hold ink are lines of text.
    """
    grey = page.convert("L")
    scale = _INK_EDGE / max(grey.size)
    if scale < 1:
        grey = grey.resize(
            (max(1, round(grey.width * scale)), max(1, round(grey.height * scale))), Image.Resampling.BILINEAR
        )
    heights = _line_heights(_ink(np.asarray(grey)))
    if heights.size < 4:
        return None
    return float(np.quantile(heights, _SMALL_SHARE)) * _LINE_TO_EM * longest_edge / max(grey.size)


def _ink(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where ink is: darker than half way from the paper to the darkest tenth of a percent."""
    paper = int(np.median(grey))
    dark = int(np.quantile(grey[::2, ::2], 0.001))
    if paper - dark < 40:
        return np.zeros(grey.shape, bool)
    return np.less(grey, paper - 0.45 * (paper - dark))


def _line_heights(ink: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Heights of the runs of inked rows over all strips, as many of each as its strip has ink columns."""
    rows, columns = ink.shape
    strips = columns // _STRIP
    if strips == 0:
        return np.zeros(0, np.int64)
    cells = ink[:, : strips * _STRIP].reshape(rows, strips, _STRIP).sum(axis=2)
    # Rows nearly full of ink are rules and boxes, not letters; a single dark pixel is noise.
    inked = (cells >= 2) & (cells <= 0.8 * _STRIP)
    edges = np.diff(np.pad(inked.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    strip_of_start, starts = np.nonzero(edges.T == 1)
    _, ends = np.nonzero(edges.T == -1)
    heights = ends - starts
    # Below 4 rows: dots, dashes and the edges of rules. Above a sixth of the page: pictures.
    texty = (heights >= 4) & (heights <= rows // 6)
    # A line of letters inks a good part of its box; a vertical rule inks two columns of it.
    total = np.cumsum(np.pad(cells, ((1, 0), (0, 0))), axis=0)
    filled = total[ends, strip_of_start] - total[starts, strip_of_start]
    texty &= filled >= 0.12 * heights * _STRIP
    kept: NDArray[np.int64] = heights[texty]
    return kept
