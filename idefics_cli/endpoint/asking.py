"""From a request to the body that a server gets, and from its answer to ours."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from idefics_cli.documents.whole_page import data_uri
from idefics_cli.endpoint.client import Client
from idefics_cli.endpoint.dialect import Dialect
from idefics_cli.endpoint.errors import RefusedError, TransientError
from idefics_cli.openai_api.completion import NoTextError, read_completion
from idefics_cli.openai_api.write import write_messages, write_request
from idefics_cli.records import Answer, Generation, PreparedPage, Request

_KEPT_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose images are ready."""

    messages: list[dict[str, object]] = field(repr=False)
    generation: Generation


class Asking:
    """What is the same for all requests of an engine; for one event loop."""

    def __init__(self, model: str, generation: Generation, prompt: str, redacted: Callable[[str], str]) -> None:
        self._redacted = redacted
        self._model, self._generation, self._prompt = model, generation, prompt
        self._dialect = Dialect()
        self._images = _Images()
        self.has_answered = False
        """Whether the server has answered a request."""

    async def prepared(self, request: Request) -> Asked:
        """Return what is sent for a request; its pixels are needed no longer."""
        pages = zip(request.page_ids, request.pages, strict=True)
        uris = [await self._images.uri(page_id, page) for page_id, page in pages]
        generation = _joined(self._generation, request.generation)
        return Asked(write_messages(request.conversation, uris, self._prompt), generation)

    async def answer(self, client: Client, asked: Asked) -> Answer:
        """Send a request; once more in other words where the server names what it does not take.

        Raises:
            TransientError: as `Client.complete`, or its answer is none.
            RefusedError: as `Client.complete`, or its answer holds no text.
            ModelError: as `Client.complete`.

        """
        dialect, first = self._dialect, None
        while True:
            body = write_request(
                self._model,
                asked.messages,
                asked.generation,
                tokens_field=dialect.tokens_field,
                logprobs=dialect.logprobs,
            )
            try:
                completion = await client.complete(body)
                break
            except RefusedError as error:
                first = first or error
                other = dialect.after(error)
                if other is None:
                    raise first from None
                dialect = other
        try:
            answer = read_completion(completion, asked.generation.stop, self._redacted)
        except ValueError as error:
            raise TransientError(str(error)) from error
        except NoTextError as error:
            raise RefusedError(str(error)) from error
        self._dialect, self.has_answered = dialect, True
        return answer


def _joined(generation: Generation, wanted: Generation | None) -> Generation:
    """Return how an answer is generated, where a request may want some things otherwise."""
    if wanted is None:
        return generation
    joined = wanted.over(generation)
    return joined if joined.temperature else dataclasses.replace(joined, top_p=None, seed=None)


class _Images:
    """Data URIs of pages, each made once for the questions that come one after the other; bounded in bytes."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, asyncio.Task[str]] = OrderedDict()
        self._bytes = 0

    async def uri(self, page_id: str, page: PreparedPage) -> str:
        """Return the data URI of a page."""
        making = self._made.get(page_id)
        if making is None:
            making = self._made[page_id] = asyncio.create_task(self._make(page))
        self._made.move_to_end(page_id)
        uri = await asyncio.shield(making)  # another request may wait for it too
        self._drop_oldest()
        return uri

    async def _make(self, page: PreparedPage) -> str:
        uri = await asyncio.to_thread(data_uri, page.crops[0])
        self._bytes += len(uri)
        return uri

    def _drop_oldest(self) -> None:
        for page_id, making in list(self._made.items())[:-1]:
            if self._bytes <= _KEPT_BYTES:
                return
            if making.done() and not making.cancelled() and making.exception() is None:
                self._bytes -= len(making.result())
                del self._made[page_id]
