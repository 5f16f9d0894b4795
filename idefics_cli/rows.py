"""Rows on their way: what a question has come to, its key, and the row that it becomes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from idefics_cli.config import RunSettings
from idefics_cli.engine.base import Engine
from idefics_cli.errors import FailureKind
from idefics_cli.records import Answer, Job, PreparedPage, Row

_MARK = 2
_DIGITS = 64


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What a row says of a page."""

    rasterizer: str
    crops: int
    warning: str

    @classmethod
    def of(cls, page: PreparedPage) -> PageFacts:
        """Take them from a prepared page."""
        return cls(page.rasterizer, len(page.crops), page.warning)


@dataclass(slots=True)
class RowToBe:
    """A row on its way: a question, its document and pages, and what has come of them."""

    job: Job
    taken: float
    pages: tuple[int, ...] = ()
    together: bool = False
    """Whether all pages are read in one prompt."""
    key: str = ""
    failure: str | None = None
    facts: dict[int, PageFacts] = field(default_factory=dict)
    """Of the pages that could be prepared; their pixels are let go with the window that asks about them."""
    page_failures: list[str] = field(default_factory=list)
    requests: int = 0
    """How many answers it takes, as far as it has been asked."""
    is_asked: bool = False
    """Whether all its pages have been asked."""
    answers: dict[int, Answer] = field(default_factory=dict)
    """By page; under the first page when they are read together."""
    raster_ms: float = 0.0
    prepare_ms: float = 0.0

    @property
    def is_answered(self) -> bool:
        """Whether every answer is there."""
        return self.is_asked and len(self.answers) == self.requests


def finished_row(row: RowToBe, model: str) -> Row:
    """Reduce what came of a row to the row: of several pages, the page whose answer is most probable."""
    answered = {page: answer for page, answer in row.answers.items() if answer.failure is None}
    question, document = row.job.question, row.job.document
    best = max(answered, key=lambda page: answered[page].confidence, default=None)
    answer = answered[best] if best is not None else None
    read = tuple(row.facts) if row.together else (best,) if best is not None else tuple(row.facts)[:1]
    facts = [row.facts[page] for page in read]
    failures = (
        [row.failure] if row.failure else row.page_failures + [a.failure for a in row.answers.values() if a.failure]
    )
    warnings = [page.warning for page in facts] + [answer.warning if answer else ""]
    if answer is not None and failures:
        warnings.append(f"{len(failures)} of {len(row.pages)} pages failed: {failures[0]}")
    every = row.answers.values()
    return Row(
        key=row.key,
        id=question.id,
        document=document.name if document else question.document or "",
        page=_page_words(read if answer is not None else row.pages) or question.page or "",
        question=question.text,
        answer=answer.text if answer else "",
        confidence=answer.confidence if answer else None,
        status="ok" if answer else "failed",
        error="" if answer else failures[0] if failures else f"{FailureKind.MODEL_ERROR}: the engine gave no answer",
        warning="; ".join(dict.fromkeys(filter(None, warnings))),
        rasterizer=facts[0].rasterizer if facts else "",
        split=any(page.crops > 1 for page in facts) if facts else None,
        crops=sum(page.crops for page in facts) if facts else None,
        prompt_tokens=answer.prompt_tokens if answer else None,
        new_tokens=answer.new_tokens if answer else None,
        batch_size=answer.batch_size if answer else None,
        raster_ms=row.raster_ms,
        prepare_ms=row.prepare_ms,
        vision_ms=sum(answer.vision_ms for answer in every),
        prefill_ms=sum(answer.prefill_ms for answer in every),
        decode_ms=sum(answer.decode_ms for answer in every),
        latency_ms=(time.perf_counter() - row.taken) * 1e3,
        model=model,
        extra=question.extra,
    )


def _page_words(pages: Sequence[int]) -> str:
    """Write pages as a selection: `3`, `1-4`, `1,3`."""
    if len(pages) > 1 and tuple(pages) == tuple(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]}-{pages[-1]}"
    return ",".join(map(str, pages))


def answer_settings(engine: Engine, settings: RunSettings) -> dict[str, str]:
    """Every setting that can change an answer, by the name that a user knows it by."""
    pages, model = settings.pages, settings.model
    return {
        "model, revision or number format": engine.identity,
        "--prompt": model.prompt,
        "--max-new-tokens": str(model.max_new_tokens),
        "--split": f"{pages.split} {pages.split_em:g}",
        "--rasterizer": pages.rasterizer,
        "--across": settings.across,
        "image size": str(engine.geometry.longest_edge),
    }


def settings_mark(settings: Mapping[str, str]) -> str:
    """Return what a key begins with: two hexadecimal digits for each setting, so that an output tells which differ."""
    return "".join(hashlib.sha256(value.encode()).hexdigest()[:_MARK] for value in settings.values())


def differing_settings(key: str, settings: Mapping[str, str]) -> list[str]:
    """Return the names of the settings that a row with this key was not answered with."""
    here = settings_mark(settings)
    digits = range(0, len(here), _MARK)
    return [name for name, at in zip(settings, digits, strict=True) if key[at : at + _MARK] != here[at : at + _MARK]]


def row_key(row: RowToBe, digest: str | None, settings: Mapping[str, str]) -> str:
    """Hash what a row answers: the document's bytes, the pages, the question and the settings; 64 digits.

    Args:
        row: the row to be.
        digest: of the document's bytes; None where it can't be read, then its name stands for it.
        settings: see `answer_settings`.

    """
    document, question = row.job.document, row.job.question
    content = digest or (f"unreadable {document.name}" if document else f"{question.document} {question.place}")
    pages = _page_words(row.pages) or question.page or ""
    name = document.name if document else ""
    words = [content, pages, question.text, question.id, name, *settings.values()]
    return (settings_mark(settings) + hashlib.sha256(json.dumps(words).encode()).hexdigest())[:_DIGITS]
