"""Rows on their way: what a question has come to so far, and the row that it becomes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

from idefics_cli.documents import discover
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.openai_api.batch_file import response_of
from idefics_cli.questions.pages import format_pages
from idefics_cli.records import Answer, Document, Job, PreparedPage, Row

_ABSTENTIONS = frozenset(("", "not found", "unanswerable", "not answerable", "no answer", "not mentioned", "n/a"))

_SEPARATOR = "; "  # of several documents, and of their pages


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


@dataclass(slots=True, eq=False)
class PendingRow:
    """A question, its document and pages, and what has come of them."""

    job: Job
    key: str
    pages: tuple[int, ...] = ()
    is_together: bool = False
    """Whether all pages are read in one prompt."""
    places: tuple[tuple[int, int], ...] = ()
    """Of several documents read together: the document's index and the page's number for each of `pages`, which are
    then numbers from 1 on. Empty where `pages` are those of the job's one document."""
    failure: Failure | None = None
    digest: str | list[str] = ""
    """What `key` takes for the document: the digest of its bytes, or what it is called where it can't be read."""
    facts: dict[int, PageFacts] = field(default_factory=dict)
    """Of the pages that could be prepared."""
    page_failures: list[Failure] = field(default_factory=list)
    answers: dict[int, Future[Answer]] = field(default_factory=dict)
    """By page; under the first page when they are read together."""
    is_submitted: bool = False
    """Whether all its requests have been submitted."""
    raster_ms: float = 0.0
    prepare_ms: float = 0.0
    submitted_at: float | None = None
    """When its first request was submitted, by `time.perf_counter`."""
    answered_at: list[float] = field(default_factory=list)
    """When each answer came, likewise; noted a moment after the answer can be read."""

    def place(self, page: int) -> tuple[Document, int]:
        """Return the document and the number of one of `pages`."""
        if self.places:
            index, number = self.places[page - 1]
            return self.job.documents[index], number
        assert self.job.document is not None
        return self.job.document, page

    @property
    def words(self) -> str:
        """What it asks of what, for messages."""
        page = _page_words(self, self.pages) or self.job.question.page
        place = document_names(self.job) or self.job.question.location
        return f"{place}{f', page {page}' if page else ''}: {self.job.question.text}"

    @property
    def page_counts(self) -> tuple[int, ...]:
        """How many pages are read of each document; for one document, those that are read together."""
        if not self.places:
            return (len(self.pages) if self.is_together else 1,)
        return tuple(sum(index == at for index, _ in self.places) for at in range(len(self.job.documents)))

    def expect(self, page: int, answer: Future[Answer]) -> None:
        """Take the answer of a request about a page."""
        self.answers[page] = answer
        answer.add_done_callback(self._note_time)

    def _note_time(self, answer: Future[Answer]) -> None:  # noqa: ARG002 - the signature of a callback
        self.answered_at.append(time.perf_counter())

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds from its first request to its last answer, which is there; None where nothing was asked."""
        if self.submitted_at is None or not self.answers:
            return None
        is_noted = len(self.answered_at) == len(self.answers)
        return ((max(self.answered_at) if is_noted else time.perf_counter()) - self.submitted_at) * 1e3

    @property
    def is_answered(self) -> bool:
        """Whether every answer is there."""
        return self.is_submitted and all(
            answer.done() and not answer.cancelled() and answer.exception() is None for answer in self.answers.values()
        )


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Pages of a row that go into one request, asked for from the page processes."""

    row: PendingRow
    page_ids: dict[int, str]
    """By page number."""
    is_last: bool


def is_abstention(text: str) -> bool:
    """Whether an answer says that the page does not hold one."""
    return text.strip().rstrip(".").lower() in _ABSTENTIONS


def finished_row(row: PendingRow, model: str, settings: str, *, with_response: bool = False) -> Row:
    """Reduce what came of a row to the row: of several pages, the page with the most certain answer.

    An abstention ranks behind every answer. Answers of different lengths are compared by the mean log-probability of
    their tokens.

    Args:
        row: all of whose answers are there; waits for them otherwise.
        model: for the column of that name.
        settings: likewise.
        with_response: whether it is to be written in the OpenAI batch form.

    Raises:
        ModelError: the engine can't go on.

    """
    answers = {page: answer.result() for page, answer in row.answers.items()}
    answered = {page: answer for page, answer in answers.items() if answer.failure is None}
    best = max(answered, key=lambda page: _rank(answered[page]), default=None)
    answer = answered[best] if best is not None else None
    is_timed = answer is None or answer.is_timed
    read = tuple(row.facts) if row.is_together else (best,) if best is not None else tuple(row.facts)[:1]
    facts = [row.facts[page] for page in read]
    failures = [row.failure] if row.failure else []
    failures += row.page_failures + [answer.failure for answer in answers.values() if answer.failure]
    if not failures and answer is None:
        failures = [Failure(FailureKind.MODEL_ERROR, "the engine gave no answer")]
    warnings = [page.warning for page in facts] + [answer.warning if answer else ""]
    if answer is not None and failures:
        warnings.append(f"{len(failures)} of {len(row.pages)} pages failed: {failures[0]}")
    if answer is not None and not answer.is_scored and len(answered) > 1:
        warnings.append(
            f"no log-probabilities: of {len(answered)} pages the first with an answer, not the most certain"
        )
    question = row.job.question
    return Row(
        document=document_names(row.job),
        page=_page_words(row, read if answer is not None else row.pages) or question.page or "",
        question=question.text,
        answer=answer.text if answer else "",
        confidence=answer.confidence if answer and answer.is_scored else None,
        status="ok" if answer else "failed",
        error="" if answer else str(failures[0]),
        warning="; ".join(dict.fromkeys(filter(None, warnings))),
        id=question.id,
        extra=question.extra,
        rasterizer=facts[0].rasterizer if facts else "",
        split=any(page.crops > 1 for page in facts) if facts else None,
        crops=sum(page.crops for page in facts) if facts else None,
        prompt_tokens=(answer.prompt_tokens or None) if answer else None,
        new_tokens=(answer.new_tokens or None) if answer else None,
        batch_size=(answer.batch_size or None) if answer else None,
        raster_ms=row.raster_ms,
        prepare_ms=row.prepare_ms,
        vision_ms=_sum(answers.values(), "vision_ms") if is_timed else None,
        prefill_ms=_sum(answers.values(), "prefill_ms") if is_timed else None,
        decode_ms=_sum(answers.values(), "decode_ms") if is_timed else None,
        latency_ms=row.latency_ms,
        answered_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model=model,
        settings=settings,
        key=row.key,
        response=response_of(answer, next(iter(failures), None), question.chat, model) if with_response else None,
        custom_id=str(question.id) if question.chat else row.key,
    )


def _rank(answer: Answer) -> tuple[bool, float]:
    """Return what answers are compared by; without log-probabilities the first page with an answer is taken."""
    return not is_abstention(answer.text), answer.mean_logprob if answer.is_scored else -math.inf


def document_names(job: Job) -> str:
    """Name the document of a row; several in their order."""
    if job.documents:
        return _SEPARATOR.join(document.name for document in job.documents)
    if job.question.documents:
        return _SEPARATOR.join(discover.short_name(part.document) for part in job.question.documents)
    return job.document.name if job.document else job.question.document or ""


def _page_words(row: PendingRow, pages: Sequence[int]) -> str:
    """Write pages as a selection; of several documents, one for each."""
    if not row.places:
        return format_pages(pages)
    of_documents = range(len(row.job.documents))
    return _SEPARATOR.join(format_pages([page for at, page in row.places if at == index]) for index in of_documents)


def _sum(answers: Iterable[Answer], name: str) -> float:
    return float(sum(getattr(answer, name) for answer in answers))
