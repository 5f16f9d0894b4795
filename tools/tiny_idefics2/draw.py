"""Draws laid-out pages as images: fonts, then rotation, blur, paper, noise and JPEG as a scanner leaves them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tools.tiny_idefics2.fonts import advances, face
from tools.tiny_idefics2.page import Page, Rule, Text

_NOISE = np.random.default_rng(7).standard_normal((1100, 1100)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scan:
    """How a page is worn by scanning; the default leaves it as drawn."""

    angle: float = 0.0  # degrees
    blur: float = 0.0  # radius in pixels
    noise: float = 0.0  # standard deviation in grey levels
    paper: int = 255  # grey of the paper
    contrast: float = 1.0
    jpeg: int | None = None
    oversample: float = 1.0  # drawn this much larger, then reduced

    @classmethod
    def random(cls, rng: Random, strength: float = 1.0) -> Scan:
        """Draw a scan; half of the pages stay clean."""
        oversample = rng.choice((1.0, 1.0, 1.0, 1.5, 2.0))
        if rng.random() < 0.5:
            return cls(oversample=oversample, paper=rng.choice((255, 255, 255, 240)))
        return cls(
            angle=rng.gauss(0, 0.5) * strength if rng.random() < 0.6 else 0.0,
            blur=rng.uniform(0.2, 0.6) * strength if rng.random() < 0.4 else 0.0,
            noise=rng.uniform(2, 14) * strength if rng.random() < 0.7 else 0.0,
            paper=rng.randint(215, 255),
            contrast=rng.uniform(0.65, 1.0),
            jpeg=rng.randint(50, 90) if rng.random() < 0.4 else None,
            oversample=oversample,
        )


def draw(page: Page, scan: Scan, *, scale: float = 1.0) -> Image.Image:
    """Draw a page in grey ("L"), `scale` times its size."""
    width, height = round(page.width * scale), round(page.height * scale)
    drawn = scale * scan.oversample
    image = Image.new("L", (round(page.width * drawn), round(page.height * drawn)), 255)
    canvas = ImageDraw.Draw(image)
    for item in page.items:
        if isinstance(item, Rule):
            box = [value * drawn for value in item.box]
            if item.outline:
                canvas.rectangle(box, outline=item.ink, width=max(1, round(drawn)))
            else:
                canvas.rectangle(box, fill=item.ink)
    for item in page.items:
        if isinstance(item, Text):
            font = face(item.face, round(item.size * drawn, 1))
            for x, text in _pieces(item):
                canvas.text((x * drawn, item.y * drawn), text, fill=item.ink, font=font)
    if image.size != (width, height):
        twice = image.size == (2 * width, 2 * height)
        image = image.reduce(2) if twice else image.resize((width, height), Image.Resampling.BILINEAR)
    if scan.angle:
        image = image.rotate(scan.angle, Image.Resampling.BILINEAR, fillcolor=255)
    if scan.blur:
        image = image.filter(ImageFilter.GaussianBlur(scan.blur * max(1.0, scale)))
    if scan.contrast < 1 or scan.paper < 255:
        low = scan.paper * (1 - scan.contrast)
        image = image.point([round(low + (scan.paper - low) * level / 255) for level in range(256)])
    if scan.noise:
        image = _with_noise(image, scan.noise)
    if scan.jpeg:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=scan.jpeg)
        image = Image.open(stream).convert("L")
    return image


def _pieces(item: Text) -> list[tuple[float, str]]:
    """The runs of a text that the font sets, each with its left edge: words, where spaces are stretched."""
    if not item.stretch or " " not in item.text:
        return [(item.x, item.text)]
    pieces, x = [], item.x
    space = advances(item.face, item.size, " ")[0] + item.stretch
    for word in item.text.split(" "):
        if word:
            pieces.append((x, word))
        x += sum(advances(item.face, item.size, word)) + space
    return pieces


def _with_noise(image: Image.Image, deviation: float) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    start = int(pixels.sum()) % 120
    noise = _NOISE[start : start + pixels.shape[0], start : start + pixels.shape[1]]
    if noise.shape != pixels.shape:  # larger than the pages that training draws by the thousand
        noise = np.random.default_rng(start).standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(pixels + deviation * noise, 0, 255).astype(np.uint8))


def characters(page: Page, angle: float) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """Return each drawn character, its centre (n, 2) as fractions of the page, and its em (n,) in page pixels."""
    names: list[str] = []
    centres: list[tuple[float, float]] = []
    sizes: list[float] = []
    for item in page.items:
        if not isinstance(item, Text):
            continue
        x = item.x
        y = item.y + 0.62 * item.size
        for name, advance in zip(item.text, advances(item.face, item.size, item.text), strict=True):
            if name != " ":
                names.append(name)
                centres.append((x + advance / 2, y))
                sizes.append(item.size)
            x += advance + (item.stretch if name == " " else 0.0)
    points = np.array(centres, np.float32).reshape(-1, 2)
    if angle:
        middle = np.array([page.width / 2, page.height / 2], np.float32)
        turn = math.radians(angle)
        matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], np.float32)
        points = (points - middle) @ matrix.T + middle
    return names, points / np.array([page.width, page.height], np.float32), np.array(sizes, np.float32)
