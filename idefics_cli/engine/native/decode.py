"""Decoding of sequences at positions of their own; a new one takes the index of one that has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.native.models.decoder import Decoder, KVCache, Segment
from idefics_cli.engine.native.ops.base import AttentionMetadata, Ops
from idefics_cli.engine.native.sequence import Output
from idefics_cli.engine.native.transfer import HostCopy, to_device


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence whose prompt is in the KV cache."""

    index: int
    segment: Segment
    """The last of its prompt."""
    prompt: Sequence[int]
    """All its tokens."""
    random_key: int = 0
    """What its random numbers are made from."""
    rules: GenerationRules | None = None
    """How its answer is generated; None is as those of the decoder."""


@dataclass(slots=True, eq=False)
class Growing:
    """An answer as the host knows it."""

    most_steps: int
    """That it takes, the choice of its first token included."""
    stop: tuple[str, ...] = ()
    """Texts that end it."""
    launched: int = 0
    """Steps."""
    read: int = 0
    """Steps; less than were launched while the device computes."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that the device has been handed, and what it computes for the host."""

    rows: tuple[tuple[int, Growing], ...]
    """The sequences in it, by index."""
    copy: HostCopy


class StepDecoder(ABC):
    """The state of the batch. It lies on the device, so that a step asks nothing of the host.

    Steps run over a fixed number of rows: what is lacking is filled up with a row of no sequence. The shapes of all
    products are then the same in every step, and an answer does not depend on how many are decoded with it.

    A step may be launched before the last one is read. A sequence that has ended meanwhile takes one in vain: nothing
    of it is read, and what it writes lies in slots of its own, or in those that the next sequence writes anew.
    """

    def __init__(
        self, model: Decoder, cache: KVCache, ops: Ops, *, max_num_seqs: int, rows: int, rules: GenerationRules
    ) -> None:
        """Allocate the state of sequences 0 to `max_num_seqs` - 1, decoded `rows` at a time."""
        self._model, self._cache, self._ops, self._rows = model, cache, ops, rows
        self._rules, self._filler = rules, max_num_seqs
        device, self._size = model.device, max_num_seqs + 1
        suppressed = sorted(token for token in rules.suppressed_tokens if 0 <= token < model.logits_width)
        self._suppressed = torch.tensor(suppressed, device=device, dtype=torch.long)
        self._location = torch.zeros(4, self._size, dtype=torch.int32, device=device)
        """Prefix start and length, suffix start and length."""
        self._limit = torch.zeros(self._size, dtype=torch.int32, device=device)
        """Suffix length at which a sequence stands still."""
        self._count = torch.zeros(self._size, dtype=torch.long, device=device)
        """Steps that a sequence has had."""
        self._token = torch.zeros(self._size, dtype=torch.long, device=device)
        """What the next step runs through the model."""
        self._budget = torch.full((self._size,), rules.max_new_tokens, dtype=torch.long, device=device)
        """Most tokens of an answer."""
        self._growing: list[Growing | None] = [None] * max_num_seqs
        self._graph: _Graph | None = None

    @torch.inference_mode()
    def record(self) -> None:
        """Record a step as a CUDA graph, which is replayed from then on."""
        self._takes_recorded_step([])
        self._graph = _Graph(self._step, [self._filler] * self._rows, self._model.device)

    @torch.inference_mode()
    def start(self, starts: Sequence[Start], hidden: Tensor) -> LaunchedStep:
        """Begin sequences: choose their first tokens from the last hidden states of their prompts.

        Args:
            starts: the sequences.
            hidden: (sequences, width).

        """
        device = self._model.device
        segments = [start.segment for start in starts]
        lengths = [segment.suffix_done + segment.length for segment in segments]
        location = [
            (segment.prefix_start, segment.prefix_length, segment.suffix_start, length)
            for segment, length in zip(segments, lengths, strict=True)
        ]
        rules = [start.rules or self._rules for start in starts]
        budgets = [each.max_new_tokens for each in rules]
        limits = [length + budget for length, budget in zip(lengths, budgets, strict=True)]
        packed = to_device(torch.tensor([*zip(*location, strict=True), limits, budgets], dtype=torch.int32), device)
        indices = [start.index for start in starts]
        index = to_device(torch.tensor(indices), device)
        self._location[:, index], self._limit[index], self._budget[index] = packed[:4], packed[4], packed[5].long()
        self._count.index_fill_(0, index, 0)  # not `[index] = 0`, which waits for the device
        for sequence, each in zip(indices, rules, strict=True):
            self._growing[sequence] = Growing(self._most_steps(each), each.stop)
        self._begin(index, starts)
        for first in range(0, len(indices), self._rows):
            some = slice(first, first + self._rows)
            lacking = self._rows - len(indices[some])
            padded = torch.cat([hidden[some], hidden.new_zeros(lacking, hidden.shape[1])])
            self._choose(self._index(indices[some]), self._logits(padded))
        return self._launched(indices)

    @torch.inference_mode()
    def step(self, indices: Sequence[int]) -> LaunchedStep:
        """Do one step of each of the sequences."""
        for start in range(0, len(indices), self._rows):
            some = indices[start : start + self._rows]
            is_recorded = self._takes_recorded_step(some)
            if self._graph is not None and is_recorded:
                self._graph.replay(self._padded(some))
            else:
                self._step(self._index(some))
        return self._launched(indices)

    def goes_on(self, index: int) -> bool:
        """Whether another step of a sequence is wanted, as far as it is known without those that are not read."""
        growing = self._growing[index]
        return growing is not None and not growing.is_over and growing.launched < growing.most_steps

    def read(self, launched: LaunchedStep) -> dict[int, Output]:
        """Return the outputs of sequences that ended with a step, also of those whose index another one has by now.

        Waits for the device. Steps are to be read in their order.
        """
        rows = [(index, growing) for index, growing in launched.rows if not growing.is_over]
        for _, growing in rows:
            growing.read += 1
        return self._outputs(rows, launched.copy.wait())

    def tokens_so_far(self, index: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the tokens of a sequence that were read, and their log-probabilities."""
        growing = self._growing[index]
        return ((), ()) if growing is None else (tuple(growing.tokens), tuple(growing.logprobs))

    def _launched(self, indices: Sequence[int]) -> LaunchedStep:
        rows = []
        for index in indices:
            growing = self._growing[index]
            assert growing is not None
            growing.launched += 1
            rows.append((index, growing))
        return LaunchedStep(tuple(rows), HostCopy(*self._chosen()))

    @abstractmethod
    def _chosen(self) -> Sequence[Tensor]:
        """Return what `_outputs` reads, of all sequences by their index."""

    @abstractmethod
    def _outputs(self, rows: Sequence[tuple[int, Growing]], chosen: Sequence[np.ndarray]) -> dict[int, Output]:
        """Take what a step has chosen for rows, on the host; returns the outputs of those that it ends."""

    def _most_steps(self, rules: GenerationRules) -> int:
        """Return how many steps an answer takes at most."""
        return rules.max_new_tokens

    def _takes_recorded_step(self, indices: Sequence[int]) -> bool:  # noqa: ARG002 - of those that a decoder tells apart
        """Prepare a step of these sequences, none for one that is to be recorded; says whether they take that one."""
        return True

    @abstractmethod
    def _begin(self, index: Tensor, starts: Sequence[Start]) -> None:
        """Take new sequences, at `index` (sequences,)."""

    @abstractmethod
    def _choose(self, index: Tensor, logits: Tensor) -> None:
        """Note what follows from logits (rows, width), and which token the next step takes; nothing waits here."""

    def _padded(self, indices: Sequence[int]) -> list[int]:
        return [*indices, *[self._filler] * (self._rows - len(indices))]

    def _index(self, indices: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(self._padded(indices)), self._model.device)

    def _step(self, index: Tensor) -> None:
        """Run one token of each sequence in `index` (rows,) through the model."""
        prefix_start, prefix, suffix_start, suffix = self._location[:, index]
        query = torch.arange(len(index), dtype=torch.int32, device=index.device)
        metadata = AttentionMetadata(
            query, torch.ones_like(query), prefix_start, prefix, suffix_start, suffix + 1, max_query_length=1
        )
        hidden = self._model.embed(self._token[index])
        hidden = self._model.forward(hidden, prefix + suffix, suffix_start + suffix, metadata, self._cache, self._ops)
        self._location[3, index] = torch.minimum(suffix + 1, self._limit[index])
        self._choose(index, self._logits(hidden))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden, self._ops).index_fill_(1, self._suppressed, -torch.inf)


class _Graph:
    """A step, recorded once and replayed without the host's launching each kernel."""

    def __init__(self, step: Callable[[Tensor], None], indices: list[int], device: torch.device) -> None:
        self._indices = indices
        self._index = torch.tensor(indices, device=device)
        step(self._index)  # what is set up at first use is not recorded
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step(self._index)

    def replay(self, indices: list[int]) -> None:
        if indices != self._indices:
            self._indices = indices
            self._index.copy_(to_device(torch.tensor(indices), self._index.device), non_blocking=True)
        self._graph.replay()
