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
_X_HEIGHT_TO_EM = 2.0  # the x-height is 0.53 em, of which the edges are too light to count
_CAPITAL_TO_EM = 1.46  # capitals and figures are 0.72 em high
_PUNCTUATION = 0.5  # of the highest piece of a line: lower ones are dot leaders and rules; an x-height is 0.55 of it
_EVEN = 1.3  # lines whose strips differ by less are of capitals or figures: an ascender is 1.36 x-heights


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

    The page is cut into narrow vertical strips; in each, the runs of rows that hold ink are pieces of lines. A line
    whose pieces are of one height is of capitals or figures; of any other line the lower pieces are x-heights.
    """
    grey = page.convert("L")
    scale = _INK_EDGE / max(grey.size)
    if scale < 1:
        grey = grey.resize(
            (max(1, round(grey.width * scale)), max(1, round(grey.height * scale))), Image.Resampling.BILINEAR
        )
    ems = _ems_of_pieces(_ink(np.asarray(grey)))
    if ems.size < 4:
        return None
    return float(np.quantile(ems, _SMALL_SHARE)) * longest_edge / max(grey.size)


def _ink(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where ink is: darker than half way from the paper to the darkest tenth of a percent."""
    paper = int(np.median(grey))
    dark = int(np.quantile(grey[::2, ::2], 0.001))
    if paper - dark < 40:
        return np.zeros(grey.shape, bool)
    return np.less(grey, paper - 0.45 * (paper - dark))


def _ems_of_pieces(ink: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The em that each piece of a line, in each strip, speaks for."""
    strip, starts, ends = _pieces(ink)
    heights = (ends - starts).astype(np.float64)
    line = _lines(strip, starts, ends, ink.shape[0])
    count = int(line.max(initial=-1)) + 1
    low, high = np.full(count, np.inf), np.zeros(count)
    np.maximum.at(high, line, heights)
    is_letters = heights >= _PUNCTUATION * high[line]
    np.minimum.at(low, line[is_letters], heights[is_letters])
    even = high < _EVEN * low
    return np.where(even[line], _CAPITAL_TO_EM * heights, _X_HEIGHT_TO_EM * heights)[is_letters]


def _pieces(ink: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The strip, first row and end row of every run of inked rows that looks like text, strip by strip."""
    rows, columns = ink.shape
    strips = columns // _STRIP
    if strips == 0:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    cells = ink[:, : strips * _STRIP].reshape(rows, strips, _STRIP).sum(axis=2)
    # Rows nearly full of ink are rules and boxes, not letters; a single dark pixel is noise.
    inked = (cells >= 2) & (cells <= 0.8 * _STRIP)
    edges = np.diff(np.pad(inked.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    strip, starts = np.nonzero(edges.T == 1)
    _, ends = np.nonzero(edges.T == -1)
    heights = ends - starts
    # Below 4 rows: dots, dashes and the edges of rules. Above a sixth of the page: pictures.
    texty = (heights >= 4) & (heights <= rows // 6)
    # A line of letters inks a good part of its box; a vertical rule inks two columns of it.
    total = np.cumsum(np.pad(cells, ((1, 0), (0, 0))), axis=0)
    filled = total[ends, strip] - total[starts, strip]
    texty &= filled >= 0.12 * heights * _STRIP
    return strip[texty], starts[texty], ends[texty]


def _lines(
    strip: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], rows: int
) -> NDArray[np.int64]:
    """The number of the line that each piece belongs to: pieces beside one another, strip by strip, are one line."""
    line = np.arange(len(strip))
    if not len(strip):
        return line
    first = strip * rows + starts
    middle = (strip + 1) * rows + (starts + ends) // 2  # of each piece, in the strip to the right
    beside = np.searchsorted(first, middle, "right") - 1
    joined = (strip[beside] == strip + 1) & (strip[beside] * rows + ends[beside] > middle)
    for left, right in zip(np.nonzero(joined)[0].tolist(), beside[joined].tolist(), strict=True):
        line[right] = line[left]
    return line
