"""The records that travel through a run. All are frozen and picklable; arrays in them are never written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Crop = NDArray[np.uint8]
"""One image as the vision tower takes it, before normalization: (height, width, 3) in sRGB."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file, or the bytes of a data URI, that holds one page or several."""

    name: str
    """How the user named it: a path, or the first characters of a data URI."""
    path: str | None = None
    """The file; None for a data URI."""
    data: bytes | None = None
    """The bytes of a data URI."""


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the questions file."""

    text: str
    place: str
    """Where it stands, for messages: `questions.csv:7`."""
    document: str | None = None
    """The document as the line names it; None asks every document."""
    page: str | None = None
    """The page as the line names it; None leaves it to the options."""
    id: str = ""
    answers: tuple[str, ...] = ()
    """The accepted answers, where the line gives them."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """The user's own columns, in their order."""
    failure: str | None = None
    """Why this line can't be asked (`kind: words`); only streams go on past such a line."""


@dataclass(frozen=True, slots=True)
class Job:
    """A question to be asked of a document: one row of the output, or one a page."""

    question: Question
    document: Document | None
    """None where the line's document could not be found; `question.failure` says why."""


@dataclass(frozen=True, slots=True)
class PreparedPage:
    """A page, rasterized and cut into crops."""

    crops: tuple[Crop, ...]
    """One crop, or the four quarters and the whole of a split page."""
    rasterizer: str
    """pdfium, poppler or pillow."""
    raster_ms: float
    prepare_ms: float
    warning: str = ""

    @property
    def split(self) -> bool:
        """Whether the page was cut into sub-images."""
        return len(self.crops) > 1


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked: one question about one page or several."""

    number: int
    """Any number; the answer carries it."""
    question: str
    pages: tuple[PreparedPage, ...]
    page_ids: tuple[int, ...]
    """Identity of each page within the run: requests with equal ids share the encoding."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one row cost, in milliseconds. Shared costs are divided among the rows that share them."""

    raster_ms: float = 0.0
    prepare_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answers to a request."""

    number: int
    text: str = ""
    confidence: float = 0.0
    """Product of the probabilities of the answer's tokens, the end token included."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    batch_size: int = 0
    """How many questions were decoded together."""
    vision_ms: float = 0.0
    """This request's share of encoding its pages."""
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    warning: str = ""
    failure: str | None = None
    """`kind: words` where there is no answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the output. Its fields are the columns, in their order; the user's own columns follow."""

    key: str
    """sha256 over document, page, question and every setting that can change the answer."""
    id: str
    document: str
    page: str
    """The page's number from 1; a range when several pages were read together."""
    question: str
    answer: str
    confidence: float | None
    status: str
    """ok, failed or skipped."""
    error: str
    """Of a failed row: `kind: words`."""
    warning: str
    """What an answered row should be read with."""
    rasterizer: str
    split: bool | None
    crops: int | None
    prompt_tokens: int | None
    new_tokens: int | None
    batch_size: int | None
    raster_ms: float | None
    prepare_ms: float | None
    vision_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    latency_ms: float | None
    """Wall time from taking the request to its answer."""
    model: str
    extra: Mapping[str, object] = field(default_factory=dict)


COLUMNS: tuple[str, ...] = tuple(name for name in Row.__dataclass_fields__ if name != "extra")
COST_COLUMNS: tuple[str, ...] = tuple(Timing.__dataclass_fields__)
"""Those that share out what a run spent, in milliseconds."""
