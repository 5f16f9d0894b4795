"""Finds the print size below which a page is to be split: the evidence of samples/split-threshold.md."""

from __future__ import annotations

from pathlib import Path

import pandas
import torch

from idefics_cli.documents.text_size import em_from_ink
from tools.tiny_idefics2.evaluate import own_page
from tools.tiny_idefics2.layout import DENSE, LARGE
from tools.tiny_idefics2.model import IMAGE_SIZE
from tools.tiny_idefics2.reading import TinyReader

_BINS = [6, 7, 8, 8.5, 9, 9.5, 10, 10.5, 11, 11.5, 12, 13, 15, 18, 22]


def evidence(pages: int, seed: int, model: Path) -> str:
    """Draw pages of every print size; return, by em in pixels of one image, how they read and how ink measures them."""
    drawn = [own_page(seed + n, "any", (DENSE[0], LARGE[1])) for n in range(pages)]
    reader = TinyReader(model, torch.float32, "cuda" if torch.cuda.is_available() else "cpu")
    table = pandas.DataFrame({"em": page.em, "ink": em_from_ink(page.image, IMAGE_SIZE)} for page in drawn)
    for way in (True, False):
        answers = reader.answer(drawn, [way] * pages)
        table["split" if way else "unsplit"] = [
            sum(given == asked[1] for given, asked in zip(found, page.questions, strict=True)) / len(page.questions)
            for page, found in zip(drawn, answers, strict=True)
        ]
    summary = table.groupby(pandas.cut(table["em"], _BINS), observed=True).agg(
        pages=("em", "size"),
        split=("split", "mean"),
        unsplit=("unsplit", "mean"),
        ink_em=("ink", "median"),
        ink_low=("ink", lambda x: x.quantile(0.1)),
        ink_high=("ink", lambda x: x.quantile(0.9)),
    )
    return summary.round(3).to_string()
