"""Greedy decoding of rows that are each at a position of their own; a new one takes the place of one that has ended.

It knows rows by their number alone, not what they are about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.engine import plain, schedule
from idefics_cli.engine.operations import Operations, Segments
from idefics_cli.engine.text import Cache, Span, Text, to_device

_STEPS_BEFORE_RECORDING = 8  # of one row count; recording takes about as long as ten steps


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens of one answer."""

    tokens: tuple[int, ...]
    """Without the end token."""
    ended: bool
    """Whether the model ended the answer itself."""
    confidence: float
    """Product of the tokens' probabilities, the end token's included."""


class Decoder:
    """Rows being decoded. All state of a row lies on the device, so that a step asks nothing of the host."""

    def __init__(
        self,
        text: Text,
        cache: Cache,
        rows: int,
        *,
        ends: Collection[int],
        banned: Collection[int],
        max_new_tokens: int,
    ) -> None:
        """Make room for rows 0 to `rows` - 1; slot 0 of the cache is the decoder's own."""
        self._text, self._cache, self._max_new_tokens = text, cache, max_new_tokens
        device = text.device
        self._ends = torch.tensor(sorted(ends), device=device, dtype=torch.long)
        self._banned = torch.tensor(sorted(banned), device=device, dtype=torch.long)
        # One row more than asked for: it fills a graph's places that no row takes, and never advances.
        self._filler = rows
        self._place = torch.zeros(4, rows + 1, dtype=torch.int32, device=device)
        """Prefix start and length, own start and length."""
        self._limit = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        """Own length at which a row stands still."""
        self._count = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self._token = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self._tokens = torch.full((rows + 1, max_new_tokens), -1, dtype=torch.long, device=device)
        self._log_probability = torch.zeros(rows + 1, device=device)
        self._ended = torch.zeros(rows + 1, dtype=torch.bool, device=device)
        self._lengths = [0] * rows  # tokens so far, as the host knows them
        self._graphs: dict[int, _Graph] = {}
        self._steps: dict[int, int] = {}

    @torch.inference_mode()
    def start(self, rows: Sequence[int], spans: Sequence[Span], states: Tensor, operations: Operations) -> None:
        """Begin rows whose prompts are in the cache: choose their first tokens from the last states (rows, width)."""
        index = to_device(torch.tensor(rows), self._text.device)
        place = [(span.prefix_start, span.prefix_length, span.own_start, span.length) for span in spans]
        limits = [span.length + self._max_new_tokens for span in spans]
        packed = to_device(torch.tensor([*zip(*place, strict=True), limits], dtype=torch.int32), self._text.device)
        self._place[:, index] = packed[:4]
        self._limit[index] = packed[4]
        self._count[index] = 0
        self._log_probability[index] = 0.0
        self._tokens[index] = -1
        self._choose(index, states, operations)
        for row in rows:
            self._lengths[row] = 1

    @torch.inference_mode()
    def step(self, rows: Sequence[int], operations: Operations) -> None:
        """Add a token to each of the rows."""
        size = schedule.graph_rows(len(rows))
        graph = self._graphs.get(size)
        if graph is None and operations is not plain:
            self._steps[size] = self._steps.get(size, 0) + 1
            if self._steps[size] > _STEPS_BEFORE_RECORDING:
                filler = [self._filler] * size
                graph = self._graphs[size] = _Graph(
                    lambda index: self._step(index, operations), filler, self._text.device
                )
        if graph is not None:
            graph.replay([*rows, *[self._filler] * (size - len(rows))])
        else:
            self._step(to_device(torch.tensor(rows), self._text.device), operations)
        for row in rows:
            self._lengths[row] += 1

    def finished(self, rows: Sequence[int]) -> dict[int, Decoded]:
        """Return those of the rows that have ended or reached the limit; waits for the device."""
        ended = dict(zip(rows, self._ended[list(rows)].tolist(), strict=True))
        done = [row for row in rows if ended[row] or self._lengths[row] >= self._max_new_tokens]
        if not done:
            return {}
        tokens, logs = self._tokens[done].tolist(), self._log_probability[done].exp().tolist()
        return {
            row: Decoded(tuple(token for token in some if token >= 0), ended[row], confidence)
            for row, some, confidence in zip(done, tokens, logs, strict=True)
        }

    def _step(self, index: Tensor, operations: Operations) -> None:
        """Run one token of each row in `index` (rows,) through the model."""
        prefix_start, prefix, own_start, own = self._place[:, index]
        query = torch.arange(len(index), dtype=torch.int32, device=index.device)
        segments = Segments(query, torch.ones_like(query), prefix_start, prefix, own_start, own + 1, 1)
        hidden = self._text.embed(self._token[index])
        states = self._text.forward(hidden, prefix + own, own_start + own, segments, self._cache, operations)
        self._place[3, index] = torch.minimum(own + 1, self._limit[index])
        self._choose(index, states, operations)

    def _choose(self, index: Tensor, states: Tensor, operations: Operations) -> None:
        """Take the most probable token of each row and note it."""
        logits = self._text.logits(states, operations).index_fill(1, self._banned, -torch.inf)
        best = logits.argmax(-1)
        chosen = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(-1)
        ending = (best[:, None] == self._ends).any(1)
        count = self._count[index].clamp(max=self._max_new_tokens - 1)
        self._log_probability[index] = self._log_probability[index] + chosen
        self._tokens[index, count] = torch.where(ending, -1, best)
        self._count[index] = count + 1
        self._token[index] = best
        self._ended[index] = ending


class _Graph:
    """A step of a fixed number of rows, recorded once and replayed without the host's launching each kernel."""

    def __init__(self, step: Callable[[Tensor], None], rows: list[int], device: torch.device) -> None:
        self._rows = rows
        self._index = torch.tensor(rows, device=device)
        step(self._index)  # what is set up at first use is not recorded
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step(self._index)

    def replay(self, rows: list[int]) -> None:
        if rows != self._rows:
            self._rows = rows
            self._index.copy_(to_device(torch.tensor(rows), self._index.device), non_blocking=True)
        self._graph.replay()
