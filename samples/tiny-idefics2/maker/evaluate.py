"""Asks the tiny model about new pages with held-out values, dense and large, split and not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas

from idefics_cli.config import Across, Device, ModelSettings, PageSettings, Quantize, RunSettings, Split
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.pipeline import run
from idefics_cli.records import Document, Job, Question
from maker.data import SHAPE_WEIGHTS, SHAPES
from maker.draw import Scan, draw
from maker.layout import DENSE, LARGE, make_page

_ASKED_A_PAGE = 3
USUAL = 14  # labelled fields of a usual invoice or form; training pages hold up to twice as many


@dataclass(frozen=True, slots=True)
class Drawn:
    """A page on disk, the size of its print, and what it is asked."""

    path: Path
    print_size: str  # dense | large
    em: float
    questions: tuple[tuple[str, str, str], ...]  # question, answer, kind of look-up


def draw_pages(
    folder: Path,
    *,
    dense: int,
    large: int,
    seed: int,
    fullest: int = USUAL,
    em: tuple[float, float] = DENSE,
) -> list[Drawn]:
    """Draw pages as PNG files at a longest edge of 980 pixels; what a split would cut through is not asked."""
    rng = Random(seed)
    drawn = []
    for number in range(dense + large):
        low, high = em if number < dense else LARGE
        size = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
        while True:
            page = make_page(rng, size=size, em=rng.uniform(low, high), held_out=True, fullest=fullest)
            asked = [one for one in page.asked if not page.cut_by_split(one)]
            if asked:
                break
        rng.shuffle(asked)
        path = folder / f"{number:04}.png"
        draw(page, Scan.random(rng)).save(path)
        drawn.append(
            Drawn(
                path,
                "dense" if number < dense else "large",
                page.em,
                tuple((one.question, one.answer, f"{page.kind}/{one.kind}") for one in asked[:_ASKED_A_PAGE]),
            )
        )
    return drawn


def answer_pages(
    pages: Sequence[Drawn], split: Split, model: str = "tiny", quantize: Quantize = Quantize.NONE
) -> pandas.DataFrame:
    """Answer every question, and return a row for each with whether it is exactly right."""
    settings = RunSettings(
        pages=PageSettings(split=split),
        model=ModelSettings(model, device=Device.CPU, quantize=quantize),
        across=Across.BEST,
    )
    started = time.perf_counter()
    with PagePool(settings.pages) as pool:
        rows = list(run(_jobs(pages), Idefics2Engine(settings.model), pool, settings))
    by_path = {str(page.path): page for page in pages}
    table = pandas.DataFrame(
        {
            "page": row.document,
            "print": by_path[row.document].print_size,
            "em": by_path[row.document].em,
            "kind": row.extra["kind"],
            "split": row.split,
            "question": row.question,
            "wanted": row.extra["answers"],
            "answer": row.answer,
            "exact": row.answer == row.extra["answers"],
        }
        for row in rows
    )
    table.attrs["seconds"] = time.perf_counter() - started
    return table


def _jobs(pages: Sequence[Drawn]) -> Iterator[Job]:
    for page in pages:
        for question, answer, kind in page.questions:
            asked = Question(question, page.path.name, extra={"answers": answer, "kind": kind})
            yield Job(asked, Document(str(page.path), str(page.path)))


def figures(tables: dict[Split, pandas.DataFrame]) -> dict[str, float]:
    """What the requirements speak of: shares of questions answered exactly, and of pages split."""
    always, never, auto = (tables[split] for split in (Split.ALWAYS, Split.NEVER, Split.AUTO))

    def dense(table: pandas.DataFrame) -> float:
        return float(table[table["print"] == "dense"]["exact"].mean())

    # A page needed no splitting when every one of its questions is answered without.
    whole = never.groupby("page")["exact"].all()
    split = auto.groupby("page")["split"].first().astype(bool)
    return {
        "dense, always split": dense(always),
        "dense, never split": dense(never),
        "auto over always": float(auto["exact"].mean() / always["exact"].mean()),
        "large print split by auto": float(auto[auto["print"] == "large"].groupby("page")["split"].first().mean()),
        "split though readable whole": float((split & whole).sum() / max(1, whole.sum())),
        "seconds a page, always split": always.attrs["seconds"] / always["page"].nunique(),
    }


def report(tables: dict[Split, pandas.DataFrame]) -> str:
    """The figures, and exact match by kind of page and look-up, as text."""
    lines = [f"{name}: {value:.3f}" for name, value in figures(tables).items()]
    for split, table in tables.items():
        exact = table.groupby("print")["exact"].agg(["mean", "size"]).round(3)
        lines.append(f"--split {split}\n{exact.to_string()}")
    dense = tables[Split.ALWAYS][tables[Split.ALWAYS]["print"] == "dense"]
    lines.append(dense.groupby("kind")["exact"].agg(["mean", "size"]).round(3).to_string())
    return "\n".join(lines)
