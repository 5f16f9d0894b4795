"""Asks the package about the same pages in each format of its weights: what quantization costs in right answers."""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from idefics_cli import Session
from idefics_cli.config import Dtype, ModelSettings, PageSettings, Quantize, RunSettings, Split
from tools.tiny_idefics2.evaluate import draw_pages
from tools.tiny_idefics2.reading import AskedPage


@dataclasses.dataclass(frozen=True, slots=True)
class FormatFigures:
    """What a format answers."""

    dtype: Dtype
    quantize: Quantize
    asked: int
    exact: int
    """Answers that are exactly right."""
    same: int
    """Answers that are those of the first format."""


def compare_formats(
    own: int, second: int, seed: int, model: str, formats: Sequence[str], drawers: int | None = None
) -> Iterator[FormatFigures]:
    """Ask about own pages in small print and pages of the second set, all split.

    Args:
        own: how many own pages.
        second: how many of the second set.
        seed: of the first own page.
        model: the checkpoint.
        formats: dtypes, or quantizations, which are taken in bfloat16; the first is what the others are held against.
        drawers: processes that draw the pages.

    """
    with tempfile.TemporaryDirectory() as folder:
        pages = draw_pages(own, 0, second, seed, drawers=drawers)
        right = _write(Path(folder), pages)
        first: list[str] = []
        for name in formats:
            dtype = Dtype(name) if name in tuple(Dtype) else Dtype.BFLOAT16
            quantize = Quantize(name) if name in tuple(Quantize) else Quantize.NONE
            given = _answers(Path(folder), ModelSettings(model, dtype=dtype, quantize=quantize))
            first = first or given
            exact, same = (
                sum(one == other for one, other in zip(given, others, strict=True)) for others in (right, first)
            )
            yield FormatFigures(dtype, quantize, len(right), exact, same)


def _write(folder: Path, pages: Sequence[AskedPage]) -> list[str]:
    """Write pages and a file of questions; return the right answers in its order."""
    right = []
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["document", "question"])
        for number, page in enumerate(pages):
            page.image.save(folder / f"{number}.png")
            for question, answer, _ in page.questions:
                writer.writerow([f"{number}.png", question])
                right.append(answer)
    return right


def _answers(folder: Path, model: ModelSettings) -> list[str]:
    settings = RunSettings(model=model, pages=PageSettings(split=Split.ALWAYS))
    with Session(settings=settings) as session:
        return [row.answer for row in session.run([], str(folder / "questions.csv"))]
