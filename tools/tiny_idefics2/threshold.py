"""Finds the print size below which a page is to be split: the evidence of samples/split-threshold.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas
import torch

from idefics_cli.documents.text_size import em_from_ink
from tools.tiny_idefics2.evaluate import draw_pages, own_page
from tools.tiny_idefics2.layout import DENSE, LARGE
from tools.tiny_idefics2.model import IMAGE_SIZE
from tools.tiny_idefics2.reading import AskedPage, TinyReader

_CANDIDATES = (10.0, 10.5, 11.0, 11.5, 12.0, 12.5, 13.0)
_BINS = [6, 7, 8, 8.5, 9, 9.5, 10, 10.5, 11, 11.5, 12, 13, 15, 18, 22]


def evidence(pages: int, seed: int, model: Path) -> str:
    """Draw pages of every print size; return, by em in pixels of one image, how they read and how ink measures them."""
    table = _read_both_ways([own_page(seed + n, "any", (DENSE[0], LARGE[1])) for n in range(pages)], model)
    for way in ("split", "unsplit"):
        table[way] /= table["asked"]
    summary = table.groupby(pandas.cut(table["em"], _BINS), observed=True).agg(
        pages=("em", "size"),
        split=("split", "mean"),
        unsplit=("unsplit", "mean"),
        ink_em=("ink", "median"),
        ink_low=("ink", lambda x: x.quantile(0.1)),
        ink_high=("ink", lambda x: x.quantile(0.9)),
    )
    return summary.round(3).to_string()


def compare_thresholds(own: int, second: int, seed: int, first: int, model: Path) -> str:
    """Return, by threshold, what `auto` keeps of the answers of `always`, and the pages of large print left whole.

    Args:
        own: pages of small print of the training generator, and as many of large print.
        second: pages of the second set, of which every other one is of large print.
        seed: of own pages.
        first: page of the second set.
        model: folder of the checkpoint.

    """
    table = _read_both_ways(draw_pages(own, own, second, seed, first), model)
    is_second = table["group"].str.startswith("second")
    rows = []
    for threshold in _CANDIDATES:
        is_split = table["ink"] < threshold  # never where the ink measures nothing
        auto = table["split"].where(is_split, table["unsplit"])
        row: dict[str, float] = {"threshold": threshold}
        for name, chosen in (("own", ~is_second), ("second", is_second)):
            large = chosen & table["group"].str.endswith("large")
            row[f"{name}: kept"] = auto[chosen].sum() / table["split"][chosen].sum()
            row[f"{name}: large whole"] = 1 - is_split[large].mean()
        rows.append(row)
    return pandas.DataFrame(rows).round(3).to_string(index=False)


def _read_both_ways(pages: Sequence[AskedPage], model: Path) -> pandas.DataFrame:
    """Return a row for each page: group, print, number of questions, and how many are answered right each way."""
    reader = TinyReader(model, torch.float32, "cuda" if torch.cuda.is_available() else "cpu")
    table = pandas.DataFrame(
        {
            "group": page.group,
            "em": page.em,
            "ink": em_from_ink(page.image, IMAGE_SIZE),
            "asked": len(page.questions),
        }
        for page in pages
    )
    for way in (True, False):
        answers = reader.answer(pages, [way] * len(pages))
        table["split" if way else "unsplit"] = [
            sum(given == asked[1] for given, asked in zip(found, page.questions, strict=True))
            for page, found in zip(pages, answers, strict=True)
        ]
    return table
