"""Asks the package about documents of several pages: which way of `--across` answers best."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from random import Random

from idefics_cli import Session
from idefics_cli.config import Across, Device, Dtype, ModelSettings, PageSettings, RunSettings
from tools.tiny_idefics2.evaluate import own_page
from tools.tiny_idefics2.layout import DENSE, LARGE
from tools.tiny_idefics2.reading import AskedPage

_PAGES = (2, 3, 4)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A question whose answer stands on one page of a document only."""

    document: Path
    page: int
    question: str
    answer: str


def several_pages(documents: int, seed: int, model: str) -> dict[str, tuple[int, int, int]]:
    """Return, for each way, questions asked, answered exactly, and answered from the right page."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [one for number in range(documents) for one in _document(Path(folder), seed + 100 * number, number)]
        settings = RunSettings(model=ModelSettings(model, device=Device.CPU, dtype=Dtype.FLOAT32))
        result = {}
        for way in ("right page alone", *Across):
            pages = PageSettings(across=Across.EACH if way == "right page alone" else Across(way))
            with Session(settings=dataclasses.replace(settings, pages=pages)) as session:
                rows = [[*session.run([str(one.document)], [one.question])] for one in asked]
            if way == "right page alone":
                rows = [
                    [row for row in some if row.page == str(one.page)] for some, one in zip(rows, asked, strict=True)
                ]
            elif way is Across.EACH:
                continue  # a row for each page: nothing is chosen
            chosen = [(some[0], one) for some, one in zip(rows, asked, strict=True)]
            exact = sum(row.answer == one.answer for row, one in chosen)
            result[str(way)] = (len(asked), exact, sum(row.page == str(one.page) for row, one in chosen))
    return result


def _document(folder: Path, seed: int, number: int) -> list[_Asked]:
    """Write a TIFF of own pages, half of the documents in small print; return what it is asked."""
    count, em = Random(seed).choice(_PAGES), DENSE if number % 2 else LARGE
    pages = [own_page(seed + page, "several", em) for page in range(count)]
    path = folder / f"{number}.tiff"
    first, *rest = [page.image for page in pages]
    first.save(path, save_all=True, append_images=rest, compression="tiff_lzw")
    return [
        _Asked(path, index + 1, question, answer)
        for index, page in enumerate(pages)
        for question, answer, kind in page.questions
        if not kind.endswith(("/absent", "/title")) and not _elsewhere(question, pages[:index] + pages[index + 1 :])
    ][:3]


def _elsewhere(question: str, pages: list[AskedPage]) -> bool:
    """Whether another page could be asked the same, as far as words of four letters and more tell."""
    words = {word for word in question.lower().strip("?.").split() if len(word) > 3}
    return any(
        words & {w for w in other.lower().strip("?.").split() if len(w) > 3} - _COMMON
        for page in pages
        for other, _, _ in page.questions
    )


_COMMON = {"what", "which", "does", "give", "given", "stated", "page", "there", "tell", "find"}
