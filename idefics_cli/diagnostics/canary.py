"""Proves that a model sees its images: libraries have ignored them in silence, and batches have mixed them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from idefics_cli.config import ImageGeometry, PageSettings, Split
from idefics_cli.documents.rasterize import PagePool, result_of
from idefics_cli.engine.base import Engine
from idefics_cli.letters import letter
from idefics_cli.records import Answer, Document, PreparedPage, Request

QUESTION = "What is the date?"
_PAGES = (
    ("Invoice", "Total: 418.20", "Customer: Mara Field", "Date: 2024-03-05"),
    ("Invoice", "Total: 97.35", "Customer: Ivo Stone", "Date: 2021-11-17"),
    ("Letter", "Reference: 7731", "Date: 2019-06-28"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    is_fine: bool
    words: str


def canary_pages(geometry: ImageGeometry) -> list[PreparedPage]:
    """Return pages that differ in what is asked: split, split, and whole."""
    pages = []
    for lines, split in zip(_PAGES, (Split.ALWAYS, Split.ALWAYS, Split.NEVER), strict=True):
        with PagePool(PageSettings(split=split, workers=1)) as pool:
            document = Document("canary", data=letter(lines))
            pages.append(result_of(pool.prepare(document, 1, geometry), PreparedPage))
    return pages


def sing(engine: Engine) -> Iterator[Finding]:
    """Ask about built-in pages, one alone and all together, and yield what came of it."""
    pages = canary_pages(engine.geometry)
    # Numbers of its own for each request: nothing is to be taken from an earlier encoding.
    alone = [_answers(engine, [(page, -1 - number)])[0] for number, page in enumerate(pages)]
    together = _answers(engine, [(page, -10 - number) for number, page in enumerate([*pages, pages[0]])])
    failures = [answer.failure for answer in (*alone, *together) if answer.failure]
    if failures:
        yield Finding(False, f"a built-in page could not be asked about: {failures[0]}")
        return
    texts = [answer.text for answer in alone]
    yield Finding(
        texts[0] != texts[1], f"the answer changes with the image: {QUESTION} {texts[0]!r}, and of another {texts[1]!r}"
    )
    yield Finding(
        [answer.text for answer in together] == [*texts, texts[0]],
        f"an answer is the same alone and in a mixed batch: {', '.join(map(repr, texts))}",
    )


def _answers(engine: Engine, pages: list[tuple[PreparedPage, int]]) -> list[Answer]:
    requests = [Request(number, QUESTION, (page,), (page_id,)) for number, (page, page_id) in enumerate(pages)]
    return sorted(engine.answer(requests), key=lambda answer: answer.number)
