"""Lays out pages of any labels at all: panels, tables and sentences in a mixed order, from almost empty to full."""

from __future__ import annotations

from random import Random

from tools.tiny_idefics2 import labels
from tools.tiny_idefics2.letters import PageWriter
from tools.tiny_idefics2.page import Page
from tools.tiny_idefics2.values import Values

_BLOCKS = {
    "sheet": (("panel", "run_on", "grid", "sentences", "filler", "stamp"), (64, 7, 11, 9, 6, 3)),
    "list": (("panel", "run_on", "grid", "sentences", "filler", "stamp"), (10, 2, 78, 2, 5, 3)),
    "note": (("panel", "run_on", "grid", "sentences", "filler", "stamp"), (15, 8, 5, 58, 12, 2)),
}
"""What each kind of page is made of, by weight."""


def write_sheet(page: Page, rng: Random, held_out: bool, fullest: int) -> None:
    """Write a sheet, a list or a note to an empty page, and ask for what it says."""
    values = Values(rng, held_out, capitals=rng.random() < 0.12)
    roomy = page.width / page.em
    columns = 2 if roomy > 42 and rng.random() < 0.35 else 1
    writer = PageWriter(page, values, columns)
    if rng.random() < 0.3:
        writer.stretch = rng.uniform(0.0, 0.25)
    if rng.random() < 0.2:  # content that begins far down
        writer.flow.top = page.height * rng.uniform(0.2, 0.6)
        writer.flow.y = writer.flow.top
    writer.furnish()
    if rng.random() < 0.6:
        writer.title(labels.heading(values))
    blocks, weights = _BLOCKS[page.kind]
    left = rng.randint(3, fullest) if rng.random() < 0.65 else fullest
    tables = 0
    for _ in range(14):
        block = rng.choices(blocks, weights)[0]
        if block == "grid" and tables == (3 if fullest > 20 else 2):
            block = "panel"
        left -= _write(writer, block, left)
        tables += block == "grid"
        if rng.random() < 0.12:
            writer.flow.next_column()
        if left <= 0:
            break
        writer.flow.skip(writer.em * rng.choice((0.2, 0.6, 1.2, rng.uniform(0, 4))))
    writer.missing(rng.choice((0, 0, 1, 1, 2)))


def _write(writer: PageWriter, block: str, left: int) -> int:
    """Write one block; return how much of what the page may hold it takes."""
    rng = writer.rng
    match block:
        case "panel":
            if rng.random() < 0.3:
                writer.heading()
            return max(1, writer.panel(min(left, rng.randint(2, 12))))
        case "run_on":
            return max(1, writer.run_on(min(left, rng.randint(2, 5))))
        case "grid":
            if rng.random() < 0.35:
                writer.heading()
            return max(1, writer.grid(rng.randint(2, 9)))
        case "sentences":
            return max(1, writer.sentences(min(left, rng.randint(1, 4))))
        case "filler":
            writer.filler(rng.randint(1, 3))
            return 0
        case "stamp":
            writer.stamp()
            return 0
        case _:
            return 1
