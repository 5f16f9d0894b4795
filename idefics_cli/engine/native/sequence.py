"""One request on its way through the model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from idefics_cli.engine.families.base import Prompt
from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.native.kv_cache import Prefix
from idefics_cli.errors import Failure
from idefics_cli.records import PreparedPage


class Elapsed(Protocol):
    """A measured time, such as a `Timer`."""

    @property
    def ms(self) -> float:
        """Milliseconds."""


CostShare = tuple[Elapsed, float]
"""A measured time, and which part of it one sequence bears."""


@dataclass(frozen=True, slots=True)
class Output:
    """The tokens of one answer."""

    tokens: tuple[int, ...]
    """End token included."""
    is_complete: bool
    """Whether the model ended the answer itself."""
    logprob: float
    """Sum of the log-probabilities of the tokens."""
    text: str | None = None
    """Of the answer, where it is not for the tokens to say."""
    logprobs: tuple[float, ...] = ()
    """Of each token; empty where `text` is given."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of a prompt, what they cost, and in the end an output or a failure."""

    prompt: Prompt
    pages: dict[str, PreparedPage]
    """By page id, in the order of the prompt; let go once they are encoded."""
    page_ids: tuple[str, ...]
    shared_pages: int = 0
    """How many pages at the start are those of `prompt.shared_length`."""
    random_key: int = 0
    """What its random numbers are made from, where tokens are drawn."""
    rules: GenerationRules | None = None
    """How its answer is generated; None is as the engine's are."""
    is_watched: bool = False
    """Whether its tokens are told while they come."""
    told: int = 0
    """How many of them have been."""
    prefix: Prefix | None = None
    """Its part of the KV cache, while it is running."""
    suffix_start: int = 0
    vision: list[CostShare] = field(default_factory=list)
    """Of encoding its pages; `prefill` and `decode` likewise."""
    prefill: list[CostShare] = field(default_factory=list)
    decode: list[CostShare] = field(default_factory=list)
    batch_size: int = 0
    """The most sequences that were decoded together with it."""
    is_preempted: bool = False
    """Whether memory did not suffice for the batch it was in."""
    output: Output | None = None
    failure: Failure | None = None

    def costs_ms(self) -> tuple[float, float, float]:
        """Return the milliseconds of vision, prefill and decode that it bears; waits for the device."""
        vision, prefill, decode = (
            sum(elapsed.ms * part for elapsed, part in shares) for shares in (self.vision, self.prefill, self.decode)
        )
        return vision, prefill, decode

    @property
    def prefix_key(self) -> Hashable:
        """What it has in common with requests about the same pages."""
        return (self.page_ids, self.prompt.tokens[: self.prompt.prefix_length], self.prompt.shared_length)

    @property
    def head(self) -> tuple[Hashable, int] | None:
        """Key and length of what its prefix has in common with requests about other pages; None for nothing."""
        length = self.prompt.shared_length
        if not length:
            return None
        # Which images they are is for the page ids of the first pages to say; more of them would share nothing.
        return (self.page_ids[: self.shared_pages], self.prompt.tokens[:length]), length

    @property
    def suffix(self) -> tuple[int, ...]:
        """The tokens behind the prefix."""
        return self.prompt.tokens[self.prompt.prefix_length :]
