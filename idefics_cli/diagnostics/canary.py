"""Checks that a model sees its images: libraries have ignored them silently, and batches have mixed them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from idefics_cli.config import PageSettings, Split
from idefics_cli.diagnostics.synthetic_pages import first_pages, letter
from idefics_cli.documents.page import ImageProcessor
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.base import Engine
from idefics_cli.records import Answer, Document, PreparedPage, Request

QUESTION = "What is the total?"
_PAGES = (
    ("Invoice", "Total: 418.20", "Customer: Mara Field", "Date: 2024-03-05"),
    ("Invoice", "Total: 97.35", "Customer: Ivo Stone", "Date: 2021-11-17"),
    ("Letter", "Reference: 7731", "Date: 2019-06-28"),
)
_REPEATS = 2  # of each page in the mixed batch


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    passed: bool
    words: str


def canary_pages(processor: ImageProcessor) -> list[PreparedPage]:
    """Return pages that differ in what is asked: split, split, and whole."""
    pages = []
    for lines, split in zip(_PAGES, (Split.ALWAYS, Split.ALWAYS, Split.NEVER), strict=True):
        with PagePool(PageSettings(split=split, workers=1)) as pool:
            document = Document("canary", data=letter(lines))
            pages += first_pages([document], processor, pool)
    return pages


def run_canary(engine: Engine) -> Iterator[Check]:
    """Ask about built-in pages, each by itself and all of them together, and yield what came of it."""
    pages = canary_pages(engine.info.image_processor)
    # Ids of its own for each request: nothing is to be taken from an earlier encoding.
    single = [_answers(engine, [page], f"single {number}")[0] for number, page in enumerate(pages)]
    mixed = _answers(engine, pages * _REPEATS, "mixed")
    failures = [answer.failure for answer in (*single, *mixed) if answer.failure]
    if failures:
        yield Check(False, f"a built-in page could not be asked about: {failures[0]}")
        return
    texts = [answer.text for answer in single]
    yield Check(
        texts[0] != texts[1], f"the answer changes with the image: {QUESTION} {texts[0]!r}, and of another {texts[1]!r}"
    )
    yield Check(
        [(answer.text, answer.confidence) for answer in mixed]
        == [(answer.text, answer.confidence) for answer in single] * _REPEATS,
        f"answers and confidence are the same singly and in a batch of {len(mixed)}: {', '.join(map(repr, texts))}",
    )


def _answers(engine: Engine, pages: Sequence[PreparedPage], name: str) -> list[Answer]:
    futures = [
        engine.submit(Request(QUESTION, (page,), (f"canary {name} {number}",))) for number, page in enumerate(pages)
    ]
    return [future.result() for future in futures]
