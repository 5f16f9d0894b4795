"""Turns generated pages into batches: crops, the characters in each patch, and question turns as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from multiprocessing.sharedctypes import Synchronized
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tools.tiny_idefics2.draw import Scan, characters, draw
from tools.tiny_idefics2.layout import DENSE, KINDS_OF_PAGES, LARGE, make_page, make_snippet
from tools.tiny_idefics2.model import IMAGE_SIZE, LATENTS, PATCH, Reader, make_tokenizer
from tools.tiny_idefics2.page import Page

SHAPES = ((756, 980), (692, 980), (980, 756), (490, 980), (980, 692))  # letter, A4, landscape, receipt, A4 landscape
SHAPE_WEIGHTS = (38, 28, 10, 15, 9)
KIND_WEIGHTS = (5, 3, 6, 3, 12, 9, 32, 32, 5)  # of KINDS_OF_PAGES: what is read worst is shown more than it is asked
MIDDLING = (20.0, 28.0)  # em at which one image is just enough: half of the whole pages
LEGIBLE = 9.0  # em in pixels of an image from which its characters are asked of the patches
IGNORED = -100

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of one shape, split or not."""

    images: Tensor  # uint8 (pages, images, height, width)
    spelled: Tensor  # int16 (pages, images, patches, 3): characters by token, 0 for none, -100 where illegible
    tokens: Tensor  # int16 (pages, length)
    turns: Tensor  # int16 (pages, length): 0 for the prefix, then 1, 2, ...
    positions: Tensor  # int16 (pages, length)
    targets: Tensor  # int16 (pages, length): the next token of an answer, or -100
    answered: Tensor  # int32: where in the flattened targets answers are
    sampled: Tensor  # int32: the patches, of all images in a row, whose characters are asked

    def pin_memory(self) -> Batch:
        """Pin every tensor (the data loader calls this)."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


class Level(IntEnum):
    """What is drawn; training climbs from one to the next as it learns to read."""

    SPELLING = 0  # patches alone
    ONE_FIELD = 1  # scraps of one field
    SCRAPS = 2  # scraps of a few
    FEW_FIELDS = 3  # unsplit pages of few fields
    PAGES = 4  # unsplit pages
    SPLIT = 5  # half of the steps on split pages
    ALL = 6  # more than half


SCRAPS = {Level.ONE_FIELD: ((140, 70), (1, 1), 16, 150), Level.SCRAPS: ((196, 140), (1, 3), 12, 240)}
"""Size of a scrap, how many fields, how many times a step's split pages, and its tokens."""
SPLIT_SHARE = {Level.SPLIT: 0.5, Level.ALL: 0.6}
WHOLE_SHARE = 0.88  # of unsplit pages: large print seen whole; the others are quarters
SEEN_AGAIN = {True: 1, False: 2}  # how often split and unsplit pages are asked again
UNSPLIT_TOKENS, SPLIT_TOKENS = 448, 1152


Shown = tuple[Page, Scan, float]
"""A page, its scan and the scale it is seen at."""


class Pages:
    """Endless batches of new pages; each process draws its own."""

    def __init__(self, seed: int, pages: int, level: Synchronized[int]) -> None:
        self.seed, self.pages, self.level = seed, pages, level
        self.encode = Encoder()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(0)

    def batches(self, drawer: int) -> Iterator[Batch]:
        """Draw those of one process."""
        torch.set_num_threads(1)
        rng = Random(self.seed * 1009 + drawer)
        while True:
            drawn, split, length = self._draw(rng, Level(self.level.value))
            batch = self.encode.batch(drawn, rng, split, length)
            yield batch
            # Drawing costs most, above all of the many unsplit pages of a step: seen again, asked and tinted anew.
            for _ in range(SEEN_AGAIN[split]):
                yield self.encode.again(batch, drawn, rng, split, length)

    def _draw(self, rng: Random, level: Level) -> tuple[list[Shown], bool, int]:
        """Pages of one shape, whether they are split, and how many tokens their questions may take."""
        if level in SCRAPS:
            size, (fewest, most), times, length = SCRAPS[level]
            drawn = []
            while len(drawn) < self.pages * times:
                page = make_snippet(rng, size=size, em=rng.choice((12.5, 13, 14, 15)), fields=rng.randint(fewest, most))
                if page.asked:
                    drawn.append((page, Scan.random(rng, strength=0.5), 1.0))
            return drawn, False, length
        split = rng.random() < SPLIT_SHARE.get(level, 0.0)
        size = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
        few = level <= Level.FEW_FIELDS
        count = self.pages if split else self.pages * 5
        pages = [self._page(rng, size, split, few) for _ in range(count)]
        return pages, split, SPLIT_TOKENS if split else UNSPLIT_TOKENS

    def _page(self, rng: Random, size: tuple[int, int], split: bool, few: bool) -> Shown:
        """Draw a page, its scan and the scale it is seen at."""
        scan = Scan.random(rng)
        kind = rng.choices(KINDS_OF_PAGES, KIND_WEIGHTS)[0]
        if split:
            em = rng.uniform(*(DENSE if rng.random() < 0.78 else (DENSE[1], LARGE[1])))
            return make_page(rng, size=size, em=em, held_out=False, kind=kind), scan, 1.0
        if rng.random() > WHOLE_SHARE:  # a quarter of a dense page, as a page of its own
            half = (size[0] // 2, size[1] // 2)
            em = rng.uniform(DENSE[0], 22)
            return make_page(rng, size=half, em=em, held_out=False, kind=kind, few=few), scan, 1.0
        em = rng.uniform(MIDDLING[0], (MIDDLING if rng.random() < 0.5 else LARGE)[1])
        return make_page(rng, size=size, em=em, held_out=False, kind=kind, few=few), scan, 0.5


def blank_batches(pages: int) -> Iterator[Batch]:
    """One batch of every page shape with nothing on it, to compile with."""
    encode, rng = Encoder(), Random(0)
    for size in SHAPES:
        for split in (False, True):
            shown = (Page(*size, 20.0, "form"), Scan(), 1.0 if split else 0.5)
            batch = encode.batch([shown], rng, split, SPLIT_TOKENS if split else UNSPLIT_TOKENS)
            count = pages if split else pages * 5
            yield Batch(*(torch.cat([getattr(batch, f.name)] * count) for f in fields(batch)))


class Encoder:
    """Encodes drawn pages with the tokenizer's own numbers."""

    def __init__(self) -> None:
        vocabulary = make_tokenizer().get_vocab()
        self.ids = vocabulary
        self.end, self.fake, self.image = (
            vocabulary["<end_of_utterance>"],
            vocabulary["<fake_token_around_image>"],
            vocabulary["<image>"],
        )

    def text(self, text: str) -> list[int]:
        return [self.ids.get(character, self.ids["<unk>"]) for character in text]

    def prefix(self, images: int) -> list[int]:
        one = [self.fake] + [self.image] * LATENTS
        return [self.ids["<s>"], *self.text("User:"), *one * images, self.fake, *self.text(" ")]

    def batch(self, pages: list[Shown], rng: Random, split: bool, length: int) -> Batch:
        seen = [self._see(page, scan, scale, split) for page, scan, scale in pages]
        images = torch.from_numpy(np.stack([images for images, _ in seen]))
        spelled = torch.from_numpy(np.stack([spelled for _, spelled in seen]))
        return self._asked(images, spelled, pages, rng, split, length)

    def again(self, batch: Batch, pages: list[Shown], rng: Random, split: bool, length: int) -> Batch:
        """The same pages with their questions in another order: with others, where not all find room."""
        return self._asked(batch.images, batch.spelled, pages, rng, split, length)

    def _asked(
        self, images: Tensor, spelled: Tensor, pages: list[Shown], rng: Random, split: bool, length: int
    ) -> Batch:
        """Ask drawn pages. What is looked up by index is found here, so that the GPU never waits for a count."""
        asked = [self._ask(page, rng, length, split) for page, _, _ in pages]
        tokens, turns, positions, targets = (torch.from_numpy(np.stack(x)) for x in zip(*asked, strict=True))
        answered = (targets.flatten() != IGNORED).nonzero()[:, 0].int()
        inked = (spelled > 0).any(-1).flatten().numpy()
        chance = np.random.default_rng(rng.randrange(2**32)).random(inked.shape, np.float32)
        sampled = torch.from_numpy(np.flatnonzero(chance < np.where(inked, 0.4, 0.04)).astype(np.int32))
        return Batch(images, spelled, tokens, turns, positions, targets, answered, sampled)

    def _see(self, page: Page, scan: Scan, scale: float, split: bool) -> tuple[Bytes, NDArray[np.int16]]:
        names, centres, sizes = characters(page, scan.angle)
        numbers = np.array([self.ids.get(name, self.ids["<unk>"]) for name in names], np.int16)
        image = draw(page, scan, scale=scale)
        views = [(image, (0.0, 0.0, 1.0, 1.0))]
        if split:
            width, height = image.width // 2, image.height // 2
            corners = ((0, 0), (width, 0), (0, height), (width, height))
            quarters = [
                (
                    image.crop((x, y, x + width, y + height)),
                    (x / image.width, y / image.height, (x + width) / image.width, (y + height) / image.height),
                )
                for x, y in corners
            ]
            whole = image.resize((width, height), Image.Resampling.BILINEAR)
            views = [*quarters, (whole, views[0][1])]
        images, spelled = [], []
        for view, (left, top, right, bottom) in views:
            rows, columns = view.height // PATCH, view.width // PATCH
            images.append(np.asarray(view, np.uint8)[: rows * PATCH, : columns * PATCH])
            x = (centres[:, 0] - left) / (right - left) * view.width
            y = (centres[:, 1] - top) / (bottom - top) * view.height
            em = sizes * view.width / ((right - left) * page.width)
            spelled.append(_spell(numbers, x, y, em, rows, columns))
        return np.stack(images), np.stack(spelled)

    def _ask(self, page: Page, rng: Random, length: int, split: bool) -> tuple[NDArray[np.int16], ...]:
        """Tokens, turns, positions and targets of as many of the page's questions as fit."""
        prefix = self.prefix(5 if split else 1)
        tokens, turns, positions = list(prefix), [0] * len(prefix), list(range(len(prefix)))
        targets = [IGNORED] * len(prefix)
        asked = [one for one in page.asked if not (split and page.em < 20 and page.cut_by_split(one))]
        rng.shuffle(asked)
        for turn, one in enumerate(asked, 1):
            question = [*self.text(one.question), self.end, *self.text("\nAssistant:")]
            answer = [*self.text(one.answer), self.end]
            size = len(question) + len(answer) - 1
            if len(tokens) + size > length:
                break
            tokens += question + answer[:-1]
            targets += [IGNORED] * (len(question) - 1) + answer
            turns += [turn] * size
            positions += range(len(prefix), len(prefix) + size)
        rest = length - len(tokens)
        return tuple(
            np.array(values + [fill] * rest, np.int16)
            for values, fill in ((tokens, 0), (turns, 9999), (positions, 0), (targets, IGNORED))
        )


def _spell(
    numbers: NDArray[np.int16],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    em: NDArray[np.float32],
    rows: int,
    columns: int,
) -> NDArray[np.int16]:
    """The first three characters, left to right, whose centres lie in each patch: (rows * columns, 3)."""
    spelled = np.zeros((rows * columns, Reader.CHARACTERS_A_PATCH), np.int16)
    inside = (x >= 0) & (y >= 0) & (x < columns * PATCH) & (y < rows * PATCH)
    patch = (y // PATCH).astype(np.int64) * columns + (x // PATCH).astype(np.int64)
    legible = inside & (em >= LEGIBLE)
    order = np.lexsort((x[legible], patch[legible]))
    sorted_patch, sorted_numbers = patch[legible][order], numbers[legible][order]
    if len(sorted_patch):
        first = np.r_[True, sorted_patch[1:] != sorted_patch[:-1]]
        slot = np.arange(len(sorted_patch)) - np.maximum.accumulate(np.where(first, np.arange(len(sorted_patch)), 0))
        kept = slot < Reader.CHARACTERS_A_PATCH
        spelled[sorted_patch[kept], slot[kept]] = sorted_numbers[kept]
    spelled[patch[inside & ~legible]] = IGNORED
    return spelled


assert max(max(shape) for shape in SHAPES) == IMAGE_SIZE * 2
