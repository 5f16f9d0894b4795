"""Runs prompts on the device: pages encoded once, prefixes shared, rows decoded together, memory kept within bounds."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from idefics_cli.config import Kernels
from idefics_cli.engine import plain, schedule
from idefics_cli.engine.checkpoint import Normalization, free_memory
from idefics_cli.engine.clock import Lap, Share
from idefics_cli.engine.decode import Decoded, Decoder
from idefics_cli.engine.encodings import Encoded, PageEncodings
from idefics_cli.engine.operations import Operations, has_kernels
from idefics_cli.engine.slots import Prefix, SlotTable
from idefics_cli.engine.text import Cache, Span, Text, to_device
from idefics_cli.engine.vision import Vision
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import PreparedPage

_WORTH_COMPILING = 64  # rows; the kernels compile in about the time that so many take without them
_LEAST_TOKENS_AT_ONCE = 256


@dataclass(slots=True, eq=False)
class Prompt:
    """A row on its way through the model."""

    number: int
    tokens: list[int]
    page_ids: tuple[int, ...]
    prefix_length: int
    """Tokens up to the end of the last image; what stands behind them is this row's own."""
    vision: list[Share] = field(default_factory=list)
    prefill: list[Share] = field(default_factory=list)
    decode: list[Share] = field(default_factory=list)
    batch_size: int = 0
    is_halved: bool = False
    """Whether memory did not suffice for the rows it was to be decoded with."""
    failure: RowFailedError | None = None
    decoded: Decoded | None = None
    key: tuple[object, ...] = field(init=False)
    """What it has in common with other rows."""
    own: list[int] = field(init=False)
    """The tokens behind the prefix."""

    def __post_init__(self) -> None:
        self.key = (self.page_ids, *self.tokens[: self.prefix_length])
        self.own = self.tokens[self.prefix_length :]


@dataclass(slots=True)
class _Place:
    """Where a row's keys and values are."""

    prompt: Prompt
    prefix: Prefix
    own_start: int

    @property
    def span(self) -> Span:
        return Span(len(self.prompt.own), self.own_start, self.prefix.start, self.prefix.length)


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How a runner generates, and what it may use."""

    rows: int
    """Decoded together; 0 chooses."""
    max_new_tokens: int
    ends: tuple[int, ...]
    banned: tuple[int, ...]
    kernels: Kernels
    fp8: bool
    gpu_memory: float
    """GB in all; 0 for what is free."""


class Runner:
    """A model on its device, with the cache and the state of the rows that are under way."""

    def __init__(
        self, model: Any, normalization: Normalization, device: torch.device, settings: RunnerSettings
    ) -> None:
        self._settings, self._device = settings, device
        self._image_token = int(model.config.image_token_id)
        self._vision = Vision(model, normalization, device, fp8=settings.fp8)
        self._text = Text(model, device, fp8=settings.fp8)
        self.plan = schedule.plan(
            free_memory(device, settings.gpu_memory),
            schedule.sizes(model.config, torch.finfo(self._text.dtype).bits // 8),
            rows=settings.rows,
            crop_tokens=int(model.config.perceiver_config.resampler_n_latents),
            max_new_tokens=settings.max_new_tokens,
        )
        self._pages = PageEncodings(self._vision, self.plan, device)
        self._tokens_at_once = self.plan.tokens
        self._active: dict[int, _Place] = {}
        self._seen = 0
        self._is_halved = False  # whether the user's rows did not fit
        while not self._has_new_cache(self.plan.slots):
            if self.plan.rows == 1:
                raise ModelError("the GPU's memory holds the weights, but not one question beside them")
            self.plan = dataclasses.replace(self.plan, rows=self.plan.rows // 2, slots=self.plan.slots // 2 + 1)
            self._is_halved = True
        self._rows = self.plan.rows

    def encode(self, pages: Mapping[int, PreparedPage], rows: int) -> Encoded:
        """Encode the pages that so many rows ask about; the device may still be at work when this returns."""
        self._seen += rows
        return self._pages.encode(pages, self._operations())

    def run(self, prompts: Sequence[Prompt], encoded: Encoded) -> Iterator[Prompt]:
        """Answer prompts about encoded pages; each comes back once, decoded or failed, in any order."""
        costs, failures = encoded.costs, encoded.failures
        self._prefix_costs.clear()
        operations = self._operations()
        page_uses = Counter(page for prompt in prompts for page in prompt.page_ids)
        prefix_uses = Counter(prompt.key for prompt in prompts)
        first = {key: place for place, key in enumerate(prefix_uses)}
        queue: deque[Prompt] = deque()
        for prompt in sorted(prompts, key=lambda prompt: first[prompt.key]):
            prompt.vision = [(lap, part / page_uses[page]) for page in prompt.page_ids for lap, part in costs[page]]
            prompt.failure = next((failures[page] for page in prompt.page_ids if page in failures), None)
            if prompt.failure is None and len(prompt.tokens) + self._settings.max_new_tokens > self._text.longest:
                words = f"a prompt of {len(prompt.tokens)} tokens; the model takes {self._text.longest} with the answer"
                prompt.failure = RowFailedError(FailureKind.TOO_LARGE, words)
            if prompt.failure is None:
                queue.append(prompt)
            else:
                yield prompt
        while queue or self._active:
            yield from self._admitted(queue, prefix_uses, operations)
            yield from self._finished()
            self._step(queue, operations)
            yield from self._finished()

    def _operations(self) -> Operations:
        """Choose the form of the operations: this is the only place where it is chosen."""
        wanted = self._settings.kernels
        if wanted is Kernels.OFF or not has_kernels(self._device, self._text.head_dim):
            return plain
        if wanted is Kernels.AUTO and self._seen < _WORTH_COMPILING:
            return plain
        from idefics_cli.engine import kernels

        return kernels

    # --- rows come ---

    def _admitted(
        self, queue: deque[Prompt], uses: Counter[tuple[object, ...]], operations: Operations
    ) -> Iterator[Prompt]:
        """Let waiting rows join those being decoded; yields a row that can't, even alone."""
        if not schedule.is_time_to_admit(len(queue), len(self._active), self._rows):
            return
        new = self._placed(queue)
        if not new and not self._active:
            self._slots.forget_unused()
            new = self._placed(queue)
        if not new:
            if not self._active and not self._has_grown(queue[0]):
                yield _out_of_memory(queue.popleft())
            return
        try:
            self._prefill(new, uses, operations)
            return
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        torch.cuda.empty_cache()
        self._send_back(new, queue)
        if len(new) == 1 and not self._active and self._tokens_at_once <= _LEAST_TOKENS_AT_ONCE:
            yield _out_of_memory(queue.popleft())

    def _placed(self, queue: deque[Prompt]) -> list[int]:
        """Give rows from the front of the queue places in the cache, while there are some."""
        new: list[int] = []
        free = [row for row in range(self.plan.rows) if row not in self._active]
        while queue and len(self._active) < self._rows:
            prompt = queue[0]
            prefix = self._slots.share(prompt.key, prompt.prefix_length)
            if prefix is None:
                break
            own = self._slots.take(len(prompt.own) + self._settings.max_new_tokens)
            if own is None:
                self._slots.release(prefix)
                break
            row = free[len(new)]
            self._active[row] = _Place(queue.popleft(), prefix, own)
            new.append(row)
        return new

    @torch.inference_mode()
    def _prefill(self, new: Sequence[int], uses: Counter[tuple[object, ...]], operations: Operations) -> None:
        """Compute keys and values of prefixes that are new, then of the rows' own tokens, and start the rows."""
        empty = {id(place.prefix): place for row in new if not (place := self._active[row]).prefix.is_filled}
        places = list(empty.values())
        for part in schedule.chunks([place.prefix.length for place in places], self._tokens_at_once):
            lap = Lap(self._device)
            some = places[part]
            tokens = [place.prompt.tokens[: place.prefix.length] for place in some]
            hidden = self._embedded(tokens, [page for place in some for page in place.prompt.page_ids])
            spans = [Span(place.prefix.length, place.prefix.start) for place in some]
            self._text.prefill(hidden, spans, self._cache, operations)
            lap.stop()
            for place in some:
                place.prefix.is_filled = True
                self._prefix_costs[place.prompt.key] = (lap, 1 / len(some) / uses[place.prompt.key])
        lengths = [len(self._active[row].prompt.own) for row in new]
        for part in schedule.chunks(lengths, self._tokens_at_once):
            lap = Lap(self._device)
            rows = new[part]
            spans = [self._active[row].span for row in rows]
            hidden = self._embedded([self._active[row].prompt.own for row in rows], [])
            states = self._text.prefill(hidden, spans, self._cache, operations)
            self._decoder.start(rows, spans, states, operations)
            lap.stop()
            for row in rows:
                prompt = self._active[row].prompt
                prompt.prefill.append((lap, 1 / len(rows)))
                if prompt.key in self._prefix_costs:
                    prompt.prefill.append(self._prefix_costs[prompt.key])

    def _embedded(self, tokens: Sequence[Sequence[int]], pages: Sequence[int]) -> Tensor:
        """Embed packed tokens, (tokens, width), image tokens replaced by the latents of the pages in their order."""
        flat = torch.tensor([token for some in tokens for token in some])
        hidden = self._text.embed(to_device(flat, self._device))
        if pages:
            images = to_device((flat == self._image_token).nonzero()[:, 0], self._device)
            hidden[images] = torch.cat([self._pages[page] for page in pages]).to(hidden.dtype)
        return hidden

    # --- rows go on and leave ---

    def _step(self, queue: deque[Prompt], operations: Operations) -> None:
        """Add a token to every row; rows that memory does not suffice for go back to the queue."""
        rows = list(self._active)
        if not rows:
            return
        lap = Lap(self._device)
        try:
            self._decoder.step(rows, operations)
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        else:
            lap.stop()
            for row in rows:
                prompt = self._active[row].prompt
                prompt.decode.append((lap, 1 / len(rows)))
                prompt.batch_size = max(prompt.batch_size, len(rows))
            return
        torch.cuda.empty_cache()
        self._send_back(rows[len(rows) // 2 :], queue)

    def _finished(self) -> Iterator[Prompt]:
        rows = list(self._active)
        if not rows:
            return
        for row, decoded in self._decoder.finished(rows).items():
            prompt = self._active[row].prompt
            prompt.decoded, prompt.batch_size = decoded, max(1, prompt.batch_size)
            prompt.is_halved |= self._is_halved
            self._leave(row)
            yield prompt

    def _leave(self, row: int) -> None:
        place = self._active.pop(row)
        self._slots.release(place.prefix)
        self._slots.give_back(place.own_start, len(place.prompt.own) + self._settings.max_new_tokens)

    def _send_back(self, rows: Sequence[int], queue: deque[Prompt]) -> None:
        """Return rows to the queue for want of memory, and do half as much at once from now on."""
        for row in reversed(rows):
            prompt = self._active[row].prompt
            prompt.is_halved = True
            self._leave(row)
            queue.appendleft(prompt)
        self._rows = max(1, (len(self._active) + len(rows)) // 2)
        self._tokens_at_once = max(_LEAST_TOKENS_AT_ONCE, self._tokens_at_once // 2)

    # --- the cache ---

    def _has_grown(self, prompt: Prompt) -> bool:
        """Make the cache large enough for a long prompt; says whether that was possible."""
        needed = len(prompt.tokens) + self._settings.max_new_tokens + 1
        if needed <= self._cache.slots:
            return False
        del self._cache, self._decoder
        if self._has_new_cache(needed):
            return True
        self._has_new_cache(self.plan.slots)
        return False

    def _has_new_cache(self, slots: int) -> bool:
        """Make a cache, and the decoder that goes with it; says whether memory sufficed."""
        try:
            self._cache = Cache(self._text, slots)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return False
        self._slots = SlotTable(1, slots)  # slot 0 is the decoder's
        self._prefix_costs: dict[tuple[object, ...], Share] = {}
        self._decoder = Decoder(
            self._text,
            self._cache,
            self.plan.rows,
            ends=self._settings.ends,
            banned=self._settings.banned,
            max_new_tokens=self._settings.max_new_tokens,
        )
        return True


def _out_of_memory(prompt: Prompt) -> Prompt:
    words = f"a prompt of {len(prompt.tokens)} tokens does not fit the GPU's memory, even alone"
    prompt.failure = RowFailedError(FailureKind.OUT_OF_MEMORY, words)
    return prompt
