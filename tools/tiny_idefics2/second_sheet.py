"""What pages of the second set are drawn on: faces of their own, a sheet to write and ask on, a scanner's wear."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.tiny_idefics2.fonts import package_folder

FACES = ("lato", "red-hat", "noto-sans", "ubuntu", "space-mono", "fira-mono", "computer-modern")
_PYMUPDF = {"noto-sans": "NotoSans", "ubuntu": "Ubuntu", "space-mono": "SpaceMono", "fira-mono": "FiraMono"}
Asked = tuple[str, str, str]
Box = tuple[float, float, float, float]


@cache
def _file(name: str, bold: bool) -> bytes:
    weight = "Bold" if bold else "Regular"
    if name in _PYMUPDF:
        return bytes(import_module(f"pymupdf_fonts.{_PYMUPDF[name]}_{weight}").fontbuffer)
    if name == "computer-modern":
        return (package_folder("matplotlib") / f"mpl-data/fonts/ttf/cm{'b' if bold else 'r'}10.ttf").read_bytes()
    package, stem = {"lato": ("font_lato", "Lato"), "red-hat": ("font_rhd", "RedHatDisplay")}[name]
    return (package_folder(package) / "files" / f"{stem}-{weight}.ttf").read_bytes()


@dataclass
class Sheet:
    """A page being drawn, word by word: its pen, its type, and what it can be asked."""

    rng: Random
    em: float
    image: Image.Image
    face: str
    capitals: bool
    y: float = 0.0
    asked: list[Asked] = field(default_factory=list)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    @property
    def left(self) -> float:
        return 0.07 * self.image.width

    @property
    def right(self) -> float:
        return 0.94 * self.image.width

    def font(self, bold: bool = False, scale: float = 1.0) -> ImageFont.FreeTypeFont:
        size = round(self.em * scale)
        return ImageFont.truetype(io.BytesIO(_file(self.face, bold)), size, layout_engine=ImageFont.Layout.BASIC)

    def say(self, x: float, y: float, text: str, *, bold: bool = False, scale: float = 1.0) -> Box:
        """Write one line of text; return its box."""
        font, start = self.font(bold, scale), x
        for word in text.split():
            self.pen.text((x, y), word, font=font, fill=25)
            x += font.getlength(word) + 0.32 * self.em * scale
        return (start, y + 0.15 * self.em, x - 0.32 * self.em * scale, y + self.em * scale)

    def width(self, text: str, bold: bool = False) -> float:
        words = text.split()
        return sum(self.font(bold).getlength(word) for word in words) + 0.32 * self.em * (len(words) - 1)

    def rule(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.pen.rectangle((x0, y0, x1, y1), fill=70)

    def down(self, lines: float) -> bool:
        """Go down so many lines, past the seam in the middle; False when the page ends there."""
        self.y += lines * 1.5 * self.em
        middle = self.image.height / 2
        if self.y < middle < self.y + 1.4 * self.em:
            self.y = middle + 0.2 * self.em
        return self.y + 2 * self.em < 0.97 * self.image.height

    def ask(self, question: str, answer: str, kind: str, *boxes: Box) -> None:
        """Ask, unless splitting the page would cut through the evidence."""
        middle_x, middle_y = self.image.width / 2, self.image.height / 2
        cut = any(x0 < middle_x < x1 or y0 < middle_y < y1 or x1 > self.image.width for x0, y0, x1, y1 in boxes)
        if not cut:
            self.asked.append((question, answer, kind))


def worn(image: Image.Image, rng: Random) -> Image.Image:
    """Turn, dirty and compress a page as a scanner does; half of the pages stay as they are."""
    if rng.random() < 0.5:
        return image
    image = image.rotate(rng.uniform(-0.8, 0.8), Image.Resampling.BICUBIC, fillcolor=255)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(3, 12), (image.height, image.width))
    image = Image.fromarray((np.asarray(image) * rng.uniform(0.88, 1.0) + noise).clip(0, 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=rng.randint(55, 90))
    return Image.open(stream).convert("L")
