"""The records that travel through a run. All are frozen and picklable; arrays in them are never written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from idefics_cli.errors import Failure
from idefics_cli.pickling import pickled_fast

if TYPE_CHECKING:  # programs that only pass jobs and rows on start without numpy
    import numpy as np
    from numpy.typing import NDArray

Crop: TypeAlias = "NDArray[np.uint8]"
"""One image as the vision encoder takes it, before normalization: (height, width, 3) in sRGB."""


@pickled_fast
@dataclass(frozen=True, slots=True)
class Document:
    """A file, the bytes of a data URI, or an http(s) address, that holds one page or several."""

    name: str
    """How the user named it: a path, an address, or the first characters of a data URI."""
    path: str | None = None
    """The file; None for a data URI and an address."""
    data: bytes | None = field(default=None, repr=False)
    """The bytes of a data URI, or what was fetched."""
    url: str | None = None
    """The address that it is fetched from when it is opened."""
    password: str | None = field(default=None, repr=False)
    """Its own password, before that of the settings."""


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """Where a document stands among others that are read together with it."""

    document: str
    """As the line names it."""
    page: str | None = None
    """The page selection; None leaves it to the options."""


@dataclass(frozen=True, slots=True)
class PagePart:
    """Where the next of a request's pages stands in a turn."""


PAGE = PagePart()

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a conversation: texts and pages, in their order."""

    role: Role
    content: tuple[str | DocumentPart | PagePart, ...]
    """Documents as a question names them, which become pages in a request."""


@pickled_fast
@dataclass(frozen=True, slots=True)
class Question:
    """One line of the questions file."""

    text: str
    location: str
    """Where it stands, for messages: `questions.csv:7`."""
    document: str | None = None
    """The document as the line names it; None asks every document."""
    page: str | None = None
    """The page selection of the line; None leaves it to the options."""
    id: object = ""
    """The user's identifier: a string, or a number of a JSONL line, which stays one."""
    answers: tuple[str, ...] = ()
    """The accepted answers, where the line gives them."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """The user's own columns, in their order."""
    password: str | None = field(default=None, repr=False)
    """Of the documents it names; never written to the output."""
    failure: Failure | None = None
    """Why this line can't be asked."""
    documents: tuple[DocumentPart, ...] = ()
    """Documents that are read together in one prompt, in this order; `document` is None then."""
    turns: tuple[Turn, ...] = ()
    """The conversation that ends with the question; its document parts are `documents`, or there are none, and the
    pages stand at its beginning. Empty for a question by itself."""
    chat: ChatOptions | None = None
    """What else a line of a batch file asks for; it is about the documents in its turns alone, which may be none."""


@pickled_fast
@dataclass(frozen=True, slots=True)
class Job:
    """A question to be asked of a document, or of several together: one row of the output, or one for each page."""

    question: Question
    document: Document | None
    """None where the line's document could not be found; `question.failure` says why."""
    documents: tuple[Document, ...] = ()
    """Those of `question.documents`, one for each, of which `document` is the first."""

    @property
    def is_text(self) -> bool:
        """Whether it is a conversation without a document."""
        question = self.question
        return question.chat is not None and not question.failure and not question.documents


@dataclass(frozen=True, slots=True)
class PreparedPage:
    """A page, rasterized and cut into crops."""

    crops: tuple[Crop, ...]
    """The page as one image, or its sub-images and the whole."""
    rasterizer: str
    """pdfium, poppler or pillow."""
    raster_ms: float
    prepare_ms: float
    warning: str = ""
    columns: int = 0
    """In which its sub-images stand, row by row, where the prompt says so; 0 where it does not."""

    @property
    def split(self) -> bool:
        """Whether the page was cut into sub-images."""
        return len(self.crops) > 1


@dataclass(frozen=True, slots=True)
class Generation:
    """How the answer to one request is generated; None leaves a setting to the engine."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    """0 takes the most probable token."""
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Beside those of the engine."""

    def over(self, base: Generation | None) -> Generation:
        """Return these settings, with those of `base` where they leave one to the engine."""
        if base is None:
            return self
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(base, **given | {"stop": self.stop + base.stop})


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a line of a batch file asks for beside its conversation."""

    model: str = ""
    """As the line names it; it comes back."""
    generation: Generation = Generation()
    logprobs: bool = False
    """Whether the log-probabilities of the answer's tokens are wanted."""
    error: Mapping[str, object] | None = None
    """The body of the error that a refused line is answered with (400)."""


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """The tokens of an answer, or those that there are so far; an end token is among them."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token, after what the generation settings do to the logits."""
    decode: Callable[[Sequence[int]], str]
    """Returns the text of tokens: special tokens left out, spaces around it stripped."""
    stop: tuple[str, ...] = ()
    """Texts before the first of which the answer is cut."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked: a question about one page or several, or a conversation that ends with one."""

    question: str
    """In words, for messages; what the model is told stands in `conversation`."""
    pages: tuple[PreparedPage, ...]
    """Of the whole conversation, in their order."""
    page_ids: tuple[str, ...]
    """What each page shows, by content: requests with equal ids share the encoding of the page."""
    turns: tuple[Turn, ...] = ()
    """The conversation, a page part for each page; empty for the pages and then the question."""
    shared_turns: int = 0
    """How many turns at the start other requests begin with too, such as examples: they are computed once."""
    generation: Generation | None = None
    """What this request wants otherwise than the engine's settings say."""
    on_tokens: Callable[[GeneratedTokens], None] | None = field(default=None, repr=False, compare=False)
    """Told of the tokens so far after each step, from the engine's thread; an engine that can't tell never calls it."""

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """Turns of texts and pages; a plain question is one turn."""
        return self.turns or plain_turns(self.question, len(self.pages))

    @property
    def shared_pages(self) -> int:
        """How many pages stand in the shared turns."""
        return sum(isinstance(part, PagePart) for turn in self.turns[: self.shared_turns] for part in turn.content)

    @property
    def asked(self) -> str:
        """One text for all that is asked, equal for equal conversations; of a plain question the question itself."""
        return repr(self.turns) if self.turns else self.question


def plain_turns(question: str, pages: int) -> tuple[Turn, ...]:
    """Return the conversation of a question about so many pages."""
    return (Turn("user", (*[PAGE] * pages, question)),)


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

    text: str = ""
    confidence: float = 0.0
    """Product of the probabilities of the answer's tokens, end token included."""
    mean_logprob: float = 0.0
    """Mean log-probability of the same tokens: comparable between answers of different lengths."""
    prompt_tokens: int = 0
    """0, here and in what follows, where the engine does not say."""
    new_tokens: int = 0
    batch_size: int = 0
    """The most sequences that were decoded together with it, itself included."""
    vision_ms: float = 0.0
    """This request's share of encoding its pages."""
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    warning: str = ""
    failure: Failure | None = None
    """Why there is no answer."""
    is_complete: bool = True
    """Whether the model ended the answer itself, or a stop string did; False where it was cut at its limit."""
    is_scored: bool = True
    """Whether `confidence` and `mean_logprob` are known."""
    is_timed: bool = True
    """Whether what it cost in milliseconds is known."""
    tokens: GeneratedTokens | None = field(default=None, repr=False, compare=False)
    """None where the engine does not say."""


@pickled_fast
@dataclass(frozen=True, slots=True)
class Row:
    """One row of the output. Its fields are the columns, in their order; the user's own stand after `id`."""

    document: str
    page: str
    """The page's number from 1; a selection such as 1-3 of pages read together, one for each document."""
    question: str
    answer: str
    confidence: float | None
    """Product of the probabilities of the answer's tokens, end token included."""
    status: str
    """ok or failed."""
    error: str
    """Of a failed row: `kind: detail`."""
    warning: str
    """What an answered row should be read with."""
    id: object
    extra: Mapping[str, object]
    """The user's own columns."""
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
    """Wall time from handing the row's first request to the engine to its last answer."""
    answered_at: str
    """When, UTC, ISO 8601 to the second: 2026-11-21T03:04:05Z."""
    model: str
    settings: str
    """Fingerprint of everything but document, pages, question and id that can change the answer."""
    key: str
    """What the row answers: digest of the document's bytes, its pages, the question with its conversation, the id; 32
    hex digits."""
    line: bytes = field(default=b"", compare=False, repr=False)
    """The row as it stands in the output, where a worker has formatted it."""
    response: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """Where the output has the OpenAI batch form: `id` of the line, `status_code`, `request_id`, and the `body` of the
    completion or the error."""
    custom_id: str = field(default="", compare=False, repr=False)
    """Likewise: that of the request; `key` of a question that came in another form."""


COLUMNS: tuple[str, ...] = tuple(
    name for name in Row.__dataclass_fields__ if name not in ("extra", "line", "response", "custom_id")
)
"""The output's own columns; the user's are inserted after `id`."""
COST_COLUMNS: tuple[str, ...] = tuple(Timing.__dataclass_fields__)
"""Those that share out what a run spent, in milliseconds."""
