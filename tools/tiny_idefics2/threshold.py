"""Finds the print size below which a page is to be split: the evidence of samples/split-threshold.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas
from PIL import Image

from idefics_cli.config import ImageGeometry, Split
from idefics_cli.documents.splitting import em_from_ink
from tools.tiny_idefics2.evaluate import answer_pages, draw_pages
from tools.tiny_idefics2.layout import DENSE, LARGE
from tools.tiny_idefics2.model import IMAGE_SIZE, SHORTEST_EDGE

_BINS = [6, 7, 8, 8.5, 9, 9.5, 10, 10.5, 11, 11.5, 12, 13, 15, 18, 22]


def evidence(count: int, seed: int) -> str:
    """Draw pages of every print size; return, by em in pixels of one image, how they read and how ink measures them."""
    geometry = ImageGeometry(IMAGE_SIZE, SHORTEST_EDGE)
    with tempfile.TemporaryDirectory() as folder:
        pages = draw_pages(Path(folder), dense=count, large=0, seed=seed, em=(DENSE[0], LARGE[1]))
        read = {
            split: answer_pages(pages, split).groupby("page")["exact"].mean() for split in (Split.ALWAYS, Split.NEVER)
        }
        table = pandas.DataFrame(
            {
                "page": str(page.path),
                "em": page.em * geometry.longest_edge / max(Image.open(page.path).size),
                "ink": em_from_ink(Image.open(page.path), geometry.longest_edge),
            }
            for page in pages
        )
    for split, exact in read.items():
        table[split.value] = table["page"].map(exact)
    table["off"] = table["ink"] / table["em"] - 1
    grouped = table.groupby(pandas.cut(table["em"], _BINS), observed=True)
    summary = grouped.agg(
        pages=("em", "size"),
        split=("always", "mean"),
        unsplit=("never", "mean"),
        ink_em=("ink", "median"),
        ink_low=("ink", lambda x: x.quantile(0.1)),
        ink_high=("ink", lambda x: x.quantile(0.9)),
    )
    return summary.round(3).to_string()


if __name__ == "__main__":
    print(evidence(int(sys.argv[1]), int(sys.argv[2])))
