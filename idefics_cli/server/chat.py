"""From the body of a chat completion to what the engine is asked: its pages prepared, its settings checked."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass

from idefics_cli.config import PageSettings
from idefics_cli.conversation import request_of
from idefics_cli.documents.page_cache import PageCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.device import free_host_memory
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.openai_api.body import parse_body
from idefics_cli.openai_api.errors import error_of
from idefics_cli.openai_api.request import ChatRequest, read_request
from idefics_cli.questions.messages import MOST_TOGETHER, documents_of
from idefics_cli.questions.pages import select_pages
from idefics_cli.records import Document, Generation, PreparedPage, Question, Request
from idefics_cli.server.documents import DocumentStore, naming

_KEPT_DOCUMENTS = 512_000_000
"""Bytes of documents in files that requests may ask for again."""
_KEPT_PAGES = 4_000_000_000
"""Bytes of prepared pages that requests may ask for again, 11 MB each in sub-images of Idefics2: some hundred clients
with a page each would otherwise have theirs prepared anew for every question."""
_KEPT_AT_LEAST, _SHARE_OF_MEMORY = 512_000_000, 8


def kept_page_bytes(free: int | None) -> int:
    """Return how many bytes of prepared pages are kept, of the memory that is free, in bytes; None is unknown."""
    return _KEPT_AT_LEAST if free is None else max(_KEPT_AT_LEAST, min(_KEPT_PAGES, free // _SHARE_OF_MEMORY))


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat completion that the engine can be asked for."""

    chat: ChatRequest
    request: Request
    pages_prepared: int
    """Pages that were not there already."""
    prepare_s: float
    """Seconds that page processes spent on them."""


class ChatPreparer:
    """Prepares chat completions, from any thread; each costs only its own request."""

    def __init__(
        self, info: EngineInfo, pool: PagePool, settings: PageSettings, *, allow_urls: bool, longest: int
    ) -> None:
        """Take how pages are prepared.

        Args:
            info: of the engine.
            pool: of page processes.
            settings: of pages.
            allow_urls: whether images may be http(s) addresses.
            longest: answer that a request may want, in tokens; more than that is cut to it.

        """
        self._info, self._pool, self._settings = info, pool, settings
        self._allow_urls, self._longest = allow_urls, longest
        self._cache = PageCache(pool, info.image_processor, kept_bytes=kept_page_bytes(free_host_memory()))
        self._documents = DocumentStore(_KEPT_DOCUMENTS, pool.folder)

    def close(self) -> None:
        """Delete what is kept in files."""
        self._documents.close()

    def prepare(self, body: bytes | bytearray) -> PreparedChat:
        """Read a body and prepare its pages; waits for the page processes.

        Raises:
            ApiError: it can't be answered.

        """
        parsed, uris = parse_body(body)
        chat = read_request(parsed, allow_urls=self._allow_urls)
        sources = [uris.get(part.document, part.document) for part in documents_of(chat.turns)]
        try:
            with self._documents.stored(sources) as documents:
                return self._prepared(chat, documents)
        except RowFailedError as error:
            raise error_of(error.failure) from error

    def _prepared(self, chat: ChatRequest, documents: list[Document]) -> PreparedChat:
        cache = self._cache
        if any(document.url for document in documents):  # what is at an address may be another thing the next time
            cache = PageCache(self._pool, self._info.image_processor)
        for document in documents:
            cache.expect(document)
        pages: list[tuple[Document, int]] = []
        counts = []
        for number, (part, document) in enumerate(zip(documents_of(chat.turns), documents, strict=True), 1):
            with naming("document", number, len(documents)):
                chosen = select_pages(part.page or self._settings.selection, cache.info(document).pages)
            pages += [(document, page) for page in chosen]
            counts.append(len(chosen))
        if len(pages) > MOST_TOGETHER:
            words = f"{len(pages):,} pages; at most {MOST_TOGETHER} are read together"
            raise RowFailedError(FailureKind.TOO_LARGE, words)
        prepared, page_ids, new = self._pages(cache, pages)
        question = Question(chat.question, "messages", documents=documents_of(chat.turns), turns=chat.turns)
        request = request_of(question, counts, tuple(prepared), tuple(page_ids))
        request = dataclasses.replace(request, generation=self._generation(chat.generation))
        spent = sum(page.raster_ms + page.prepare_ms for page in new) / 1e3
        return PreparedChat(chat, request, len(new), spent)

    def _pages(
        self, cache: PageCache, pages: list[tuple[Document, int]]
    ) -> tuple[list[PreparedPage], list[str], list[PreparedPage]]:
        """Prepare pages; returns them, their ids, and those of them that were not there."""
        requested = []
        prepared, page_ids, new = [], [], []
        try:
            for place in pages:
                page_ids.append(cache.request(*place))
                requested.append(place)
            for number, place in enumerate(pages, 1):
                with naming("page", number, len(pages)):
                    page = cache.prepared(*place)
                prepared.append(page)
                if cache.is_first_use(*place):
                    new.append(page)
        finally:
            for place in requested:
                cache.release(*place)
        return prepared, page_ids, new

    def _generation(self, wanted: Generation) -> Generation | None:
        """Return what is wanted as the engine takes it."""
        longest = wanted.max_new_tokens
        seed = wanted.seed
        if wanted.temperature and seed is None:  # the same question again is to have another answer
            seed = secrets.randbits(63)
        generation = dataclasses.replace(
            wanted, max_new_tokens=None if longest is None else min(longest, self._longest), seed=seed
        )
        return None if generation == Generation() else generation
