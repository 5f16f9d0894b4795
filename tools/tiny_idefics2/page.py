"""Laid-out pages: texts and rules in pixels at the page's own size, what the page is asked, and the flow of its lines.

Nothing is drawn here: `draw` renders a `Page` to an image, and `samples` to a PDF.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tools.tiny_idefics2.fonts import Family, advances

Box = tuple[float, float, float, float]

SEAM_TOLERANCE = 1.5  # pixels of a box that may lie beyond a seam before the text counts as cut


@dataclass(frozen=True, slots=True)
class Text:
    """One run of text; (x, y) is the top left corner of its line box, `size` the em in pixels."""

    x: float
    y: float
    text: str
    family: Family
    bold: bool
    size: float
    ink: int = 0
    stretch: float = 0.0  # pixels that each space is wider than the family's own

    @property
    def face(self) -> Path:
        return self.family.bold if self.bold else self.family.regular

    @property
    def width(self) -> float:
        width = sum(advances(self.face, self.size, self.text))
        return width + self.stretch * self.text.count(" ") if self.stretch else width

    @property
    def box(self) -> Box:
        return (self.x, self.y, self.x + self.width, self.y + 1.2 * self.size)


@dataclass(frozen=True, slots=True)
class Rule:
    """A filled rectangle or, with `outline`, a frame one pixel wide."""

    box: Box
    ink: int
    outline: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its answer, the kind of look-up it takes, and the boxes that must be legible to answer it."""

    question: str
    answer: str
    kind: str  # field | table | letter | absent | title
    evidence: tuple[Box, ...] = ()


@dataclass(slots=True)
class Page:
    """A laid-out page. `em` is the size of its body text in pixels."""

    width: int
    height: int
    em: float
    kind: str
    items: list[Text | Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def cut_by_split(self, asked: Asked, slack: float = 0.0) -> bool:
        """Whether splitting the page into quarters cuts through the evidence of a question."""
        middle_x, middle_y = self.width / 2, self.height / 2
        edge = SEAM_TOLERANCE - slack
        return any(
            (x0 < middle_x - edge and x1 > middle_x + edge) or (y0 < middle_y - edge and y1 > middle_y + edge)
            for x0, y0, x1, y1 in asked.evidence
        )


def half_steps(size: float) -> float:
    """A font size in steps of half a pixel, so that measured widths are found again."""
    return round(2 * size) / 2


class Flow:
    """Hands out lines of a page, column by column, keeping most of them clear of the middle seam."""

    def __init__(self, page: Page, rng: Random, columns: int, clear: float) -> None:
        self.page, self.rng, self.clear = page, rng, clear
        margin = page.width * rng.uniform(0.04, 0.09)
        self.top = page.height * rng.choice((0.03, 0.05, 0.07, rng.uniform(0.05, 0.3)))
        self.bottom = page.height * rng.uniform(0.94, 0.98)
        if columns == 2:
            gap = page.em * rng.uniform(0.5, 1.0)
            half = page.width / 2
            self.columns = [(margin, half - gap), (half + gap * 0.6, page.width - margin * 0.6)]
        else:
            self.columns = [(margin, page.width - margin)]
        self.column, self.y = 0, self.top

    @property
    def x0(self) -> float:
        return self.columns[self.column][0]

    @property
    def x1(self) -> float:
        return self.columns[self.column][1]

    def take(self, height: float) -> float | None:
        """Return the y of a line of this height, or None when the page is full."""
        y = self.y
        middle = self.page.height / 2
        if y < middle < y + height and self.rng.random() < self.clear:
            y = middle + 1
        if y + height > self.bottom:
            if self.column + 1 == len(self.columns):
                return None
            self.column += 1
            self.y = self.top
            return self.take(height)
        self.y = y + height
        return y

    def skip(self, height: float) -> None:
        self.y += height

    def next_column(self) -> None:
        """Go on at the top of the next column, where there is one."""
        if self.column + 1 < len(self.columns):
            self.column += 1
            self.y = self.top
