"""From jobs to rows: which pages of which documents a question is about, and the key of what it asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from idefics_cli.config import Across, PageSettings, Shard
from idefics_cli.documents.document_cache import DocumentCache
from idefics_cli.errors import Failure, FailureKind, RowFailedError
from idefics_cli.questions.messages import MOST_TOGETHER
from idefics_cli.questions.pages import format_pages, select_pages
from idefics_cli.records import Document, Job, Question
from idefics_cli.results.fingerprint import row_key
from idefics_cli.rows import PendingRow


def rows_of(job: Job, cache: DocumentCache, settings: PageSettings, shard: Shard | None = None) -> Iterator[PendingRow]:
    """Yield the rows that a job asks for: one, or one for each page; waits for its documents.

    With a shard, those whose document belongs to it.
    """
    for row in _rows_of(job, cache, settings):
        if shard is None or shard.holds(row.digest):
            yield row


def _rows_of(job: Job, cache: DocumentCache, settings: PageSettings) -> Iterator[PendingRow]:
    question, document = job.question, job.document
    asked = asked_words(question)
    if job.is_text:
        key = row_key("", "", asked, question.id)
        yield PendingRow(job, key, is_together=True, digest=key)  # so that shards share such rows
        return
    if document is None or question.failure:
        failure = question.failure or Failure(FailureKind.BAD_QUESTION, "it has no document")
        if not question.text:  # nothing else in the row tells which line it was
            failure = Failure(failure.kind, f"{question.location}: {failure.detail}")
        names: str | list[str] = question.document or ""
        if question.documents:
            names = [part.document for part in question.documents]
        key = row_key(names, question.page or "", asked, question.id)
        yield PendingRow(job, key, failure=failure, digest=names)
        return
    if job.documents:
        yield _row_of_several(job, cache, settings)
        return
    digest = f"unreadable {document.name}"
    try:
        info = cache.info(document)
        digest = info.digest
        pages = select_pages(question.page or settings.selection, info.pages)
    except RowFailedError as error:
        key = row_key(digest, question.page or "", asked, question.id)
        yield PendingRow(job, key, failure=error.failure, digest=digest)
        return
    together = settings.across is Across.TOGETHER and len(pages) > 1
    for group in [(page,) for page in pages] if settings.across is Across.EACH else [pages]:
        yield PendingRow(job, row_key(digest, format_pages(group), asked, question.id), group, together, digest=digest)


def asked_words(question: Question) -> str | list[object]:
    """Return what is asked, as it stands in a key: the question, or its turns with None for each document.

    Of a request, what it wants beside its turns is part of it: another temperature asks for another answer.
    """
    turns: list[object] = [
        [turn.role, [part if isinstance(part, str) else None for part in turn.content]] for turn in question.turns
    ]
    if (chat := question.chat) is None:
        return turns or question.text
    if question.failure:
        return ["refused", question.failure.detail]
    given = {name: value for name, value in asdict(chat.generation).items() if value not in (None, ())}
    return [turns, given, *["logprobs"] * chat.logprobs]


def _row_of_several(job: Job, cache: DocumentCache, settings: PageSettings) -> PendingRow:
    """Return the row of a question about several documents, all of whose pages are read in one prompt."""
    question, failure = job.question, None
    digests: list[str] = []
    selections: list[str] = []
    places: list[tuple[int, int]] = []
    for index, (part, document) in enumerate(zip(question.documents, job.documents, strict=True)):
        selection = part.page or question.page or settings.selection
        digest, chosen = f"unreadable {document.name}", selection or ""
        try:
            info = cache.info(document)
            digest = info.digest
            pages = select_pages(selection, info.pages)
            chosen = format_pages(pages)
            places += [(index, page) for page in pages]
        except RowFailedError as error:
            failure = failure or _named(document, error.failure, job)
        digests.append(digest)
        selections.append(chosen)
    if failure is None and len(places) > MOST_TOGETHER:
        words = f"{len(places):,} pages; at most {MOST_TOGETHER} are read together"
        failure = Failure(FailureKind.TOO_LARGE, words)
    key = row_key(digests, "; ".join(selections), asked_words(question), question.id)
    pages = tuple(range(1, len(places) + 1)) if failure is None else ()
    return PendingRow(job, key, pages, is_together=True, places=tuple(places), failure=failure, digest=digests)


def _named(document: Document, failure: Failure, job: Job) -> Failure:
    """Say which of several documents failed."""
    return Failure(failure.kind, f"{document.name}: {failure.detail}") if len(job.documents) > 1 else failure
