"""What passes between a process and that of its engine; all of it picklable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from idefics_cli.config import ModelSettings
from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineStats
from idefics_cli.errors import IdeficsCliError
from idefics_cli.records import Answer, PreparedPage, Request


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What the engine's process is to load."""

    settings: ModelSettings
    open_engine: Callable[[ModelSettings], DeferredEngine]
    """A function of a module, so that it can be pickled."""
    memory: int | None
    """The descriptor of the memory that is shared with page processes; None where there is none."""
    log_level: int
    """From which on messages of the log are sent."""


class SentPage(NamedTuple):
    """A page of a request, whose pixels may lie in shared memory."""

    page: PreparedPage
    """Without its crops, where these lie in a slot."""
    slot: int | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of the crops, which lie one after another in the slot."""
    loan: int = 0
    """Comes back in `News.returned` when nothing over there reads the slot any more; of a page with a slot only."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A request."""

    number: int
    request: Request
    """Without its pages, and without `on_tokens`."""
    pages: tuple[SentPage, ...]
    is_watched: bool
    """Whether its tokens are to be told."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for an answer any more."""

    number: int


ToEngine = Submit | Cancel


Grown = tuple[int, int, tuple[int, ...], tuple[float, ...], tuple[str, ...]]
"""Tokens of an answer that grows: number of the request, how many tokens come before these, their ids and
log-probabilities, stop strings. A plain tuple is pickled in a tenth of the time, and there is one for each stream and
step."""


def undecoded(ids: Sequence[int]) -> str:
    """Stand where an answer's tokenizer stood, which is put back where the answer is received."""
    raise NotImplementedError(f"{len(ids)} tokens on their way")


class Answered(NamedTuple):
    """An answer; `undecoded` decodes its tokens."""

    number: int
    answer: Answer


class Failed(NamedTuple):
    """A request that ended with an error."""

    number: int
    error: Exception


class Logged(NamedTuple):
    """A message of the log."""

    logger: str
    level: int
    words: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are there."""

    settings: Mapping[str, str]
    """See `EngineInfo.settings`."""


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """The process ends."""

    error: IdeficsCliError | str
    """Our own, or the traceback of another one."""


@dataclass(frozen=True, slots=True)
class News:
    """All that has happened since the last message."""

    stats: EngineStats
    steps: int
    grown: tuple[Grown, ...] = ()
    answered: tuple[Answered, ...] = ()
    failed: tuple[Failed, ...] = ()
    returned: tuple[int, ...] = ()
    """Loans of slots."""
    logged: tuple[Logged, ...] = ()


FromEngine = Loaded | NotLoaded | News
