"""How documents are opened and their pages turned into crops."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from idefics_cli.config.option import Option, Panel, check_above_zero, positive_or_auto


class Split(StrEnum):
    """When a page is cut into sub-images."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Across(StrEnum):
    """How the pages of a document answer one question."""

    EACH = "each"
    BEST = "best"
    TOGETHER = "together"


class Rasterizer(StrEnum):
    """What turns PDF pages into pixels."""

    PDFIUM = "pdfium"
    POPPLER = "poppler"


@dataclass(frozen=True, slots=True)
class PageSettings:
    """How documents are opened and their pages turned into crops."""

    selection: Annotated[
        str | None, Option("Pages from 1, as in 1-3,7,-1 (-1 is the last).", Panel.PAGES, ("--pages",), default="all")
    ] = None
    across: Annotated[
        Across,
        Option(
            "Several pages: a row for each page (each), the answer of the most certain page (best), or all pages in "
            "one prompt (together).",
            Panel.PAGES,
        ),
    ] = Across.BEST
    split: Annotated[Split, Option("Cut pages with small text into sub-images.", Panel.PAGES)] = Split.AUTO
    split_em: float = 11.5
    """Text smaller than this calls for splitting: em in pixels of one unsplit image; see samples/split-threshold.md."""
    rasterizer: Annotated[Rasterizer, Option("What renders PDF pages.", Panel.PAGES)] = Rasterizer.PDFIUM
    password: Annotated[
        str | None,
        Option(
            "For encrypted PDFs; better in the variable, where other users can't see it.",
            Panel.PAGES,
            variable="IDEFICS_CLI_PASSWORD",
        ),
    ] = None
    page_timeout: Annotated[
        float, Option("Seconds a page may take to render before its process is ended.", Panel.LIMITS, metavar="SECONDS")
    ] = 60.0
    max_pixels: Annotated[int, Option("Refuse images with more pixels.", Panel.LIMITS, metavar="N")] = 250_000_000
    max_pages: Annotated[
        int | None, Option("Refuse documents with more pages.", Panel.LIMITS, metavar="N", default="no limit")
    ] = None
    workers: Annotated[
        int | None,
        Option("Page processes.", Panel.LIMITS, metavar="auto|N", default="auto: one a core", parse=positive_or_auto),
    ] = None

    def __post_init__(self) -> None:
        check_above_zero("--page-timeout", self.page_timeout, "a number of seconds")
        check_above_zero("--max-pixels", self.max_pixels)
        check_above_zero("--max-pages", self.max_pages)
        check_above_zero("--workers", self.workers)

    @property
    def worker_count(self) -> int:
        """Page processes to start: one for each core, at most 16, unless the user says otherwise."""
        return self.workers or min(16, available_cores())


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
