"""The engine without its thread: sequences go in, each step does one thing, finished sequences come out.

This is also where memory that runs out is dealt with: what did not fit is done again in smaller parts, from the
start of the sequences concerned, and a sequence that does not fit by itself fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from idefics_cli.engine.base import EngineStats
from idefics_cli.engine.native.kv_cache import KVCacheManager
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.model_runner import Launched, ModelRunner
from idefics_cli.engine.native.scheduler import Action, Scheduler
from idefics_cli.engine.native.sequence import Sequence
from idefics_cli.engine.native.timer import Timer
from idefics_cli.errors import Failure, FailureKind, ModelError
from idefics_cli.records import PreparedPage

_LEAST_BATCHED_TOKENS = 64
_ENCODINGS_AHEAD = 2  # the device has work, and the host is never far from hearing a signal


class EngineCore:
    """Scheduler, model runner and KV cache."""

    def __init__(
        self, runner: ModelRunner, plan: MemoryPlan, *, is_shared: bool = False, is_ahead: bool | None = None
    ) -> None:
        """Allocate the KV cache.

        Args:
            runner: of the models.
            plan: how much is done at once.
            is_shared: see `Scheduler`.
            is_ahead: whether a step is launched before the last one is read, so that a GPU never waits for the host;
                None where it is one. On a CPU, where to launch is to compute, it only takes longer.

        Raises:
            ModelError: memory does not suffice for a single sequence.

        """
        self._runner = runner
        self._is_ahead = runner.device.type == "cuda" if is_ahead is None else is_ahead
        self._launched: deque[Launched] = deque()
        self._encoding: deque[Timer] = deque()
        self._is_reduced = False
        self._shared_length = 0
        self._pages_encoded = self._pages_reused = 0
        while not self._allocate(plan, plan.slots):
            if plan.max_num_seqs == 1:
                raise ModelError("the GPU's memory holds the weights, but not one question beside them")
            plan = dataclasses.replace(plan, max_num_seqs=plan.max_num_seqs // 2, slots=plan.slots // 2 + 1)
            self._is_reduced = True
        self.plan = plan
        self._scheduler = Scheduler(
            plan.max_num_seqs,
            runner.rules.max_new_tokens,
            is_padded=plan.max_num_batched_tokens is not None,
            is_shared=is_shared,
        )
        runner.record_graph()

    @property
    def has_work(self) -> bool:
        """Whether any sequence is on its way, or a step."""
        return self._scheduler.has_work or bool(self._launched)

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return self._runner.device

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence."""
        for page in sequence.page_ids:
            self._runner.features.acquire(page)
        missing = [page for page in sequence.page_ids if page not in self._runner.features]
        self._pages_reused += len(sequence.page_ids) - len(missing)
        sequence.pages = {page: sequence.pages[page] for page in missing}  # the pixels of others are not needed
        self._scheduler.add(sequence, missing)

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence between two steps; its slots and pages are free for others."""
        if self._scheduler.remove(sequence, self._manager):
            self._release_pages(sequence)

    @property
    def stats(self) -> EngineStats:
        """What is being done; may be asked from any thread."""
        scheduler, slots = self._scheduler, self._manager.free_slots
        return EngineStats(len(scheduler.running), scheduler.waiting, self._pages_encoded, self._pages_reused, slots)

    def watched(self, *, first_only: bool) -> dict[Sequence, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Return the tokens so far, and their log-probabilities, of running sequences that are watched and have more.

        Args:
            first_only: of those that it has not returned any of yet.

        """
        told = {}
        for index, sequence in self._scheduler.running.items():
            if sequence.is_watched and not (first_only and sequence.told):
                tokens, logprobs = self._runner.tokens_so_far(index)
                if len(tokens) > sequence.told:
                    told[sequence] = tokens, logprobs
                    sequence.told = len(tokens)
        return told

    def step(self) -> Iterator[Sequence]:
        """Do what is next; yields the sequences that are finished or have failed.

        The device is handed what is next before the last step is waited for.
        """
        before = len(self._launched)
        action = self._scheduler.next_action()
        if action is Action.ENCODE:
            yield from self._encode()
        elif action is Action.PREFILL:
            yield from self._prefill()
        elif action is Action.DECODE:
            yield from self._decode()
        unread = 1 if self._is_ahead and len(self._launched) > before else 0
        while len(self._launched) > unread:
            yield from self._read(self._launched.popleft())
        if action is Action.ENCODE and len(self._encoding) > _ENCODINGS_AHEAD:
            self._encoding.popleft().wait()

    # --- pages ---

    def _encode(self) -> Iterator[Sequence]:
        """Encode the pages that are needed next."""
        pages = self._scheduler.next_pages(self._runner.encoder.max_pages)
        prepared = [users[0].pages[page] for page, users in pages]
        timer = Timer(self._runner.device)
        encoded = self._encoded(prepared)
        timer.stop()
        crops = sum(len(page.crops) for page in prepared)
        for (page, users), pixels, features in zip(pages, prepared, encoded, strict=True):
            for sequence in users:
                sequence.vision.append((timer, len(pixels.crops) / crops / len(users)))
                sequence.pages.pop(page, None)
            if features is None:
                yield from self._lost(users)
            else:
                self._pages_encoded += 1
                self._runner.features.put(page, features)
                self._scheduler.page_encoded(page, users)
        self._encoding.append(timer)

    def _encoded(self, pages: SequenceOf[PreparedPage]) -> list[Tensor | None]:
        """Encode pages together; where memory does not suffice, each by itself, then crop by crop; None lacks room."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return [*self._runner.encoder.encode([page.crops for page in pages])]
        self._runner.release_memory()
        if len(pages) > 1:
            return [self._encoded([page])[0] for page in pages]
        with contextlib.suppress(torch.OutOfMemoryError):
            features = torch.cat([self._runner.encoder.encode([[crop]])[0] for crop in pages[0].crops])
            self._is_reduced = True  # other products: answers say so
            return [features]
        self._runner.release_memory()
        return [None]

    def _lost(self, users: SequenceOf[Sequence]) -> Iterator[Sequence]:
        """Fail the sequences that wait for a page that can't be encoded."""
        for sequence in self._scheduler.drop(users):
            yield self._failed(sequence, "one crop of a page does not fit the memory")

    # --- the batch ---

    def _prefill(self) -> Iterator[Sequence]:
        """Let ready sequences join the batch; yields one that can't, even by itself."""
        scheduler = self._scheduler
        self._make_room_for_examples()
        admitted = scheduler.admit(self._manager)
        if not admitted and not scheduler.running:
            self._manager.evict_unused()
            admitted = scheduler.admit(self._manager)
        if not admitted:
            if scheduler.running:  # slots come free as they end
                yield from self._decode()
            elif not self._grow(scheduler.slots_of(scheduler.ready[0]) + 1):
                yield self._too_large(scheduler.ready.popleft())
            return
        sequences = {index: scheduler.running[index] for index in admitted}
        sharing: dict[object, list[Sequence]] = {}
        for sequence in [*sequences.values(), *scheduler.ready]:
            sharing.setdefault(sequence.prefix_key, []).append(sequence)
            if sequence.head is not None:
                sharing.setdefault(sequence.head[0], []).append(sequence)
        try:
            self._launched.append(self._runner.prefill(sequences, sharing))
            return
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        self._runner.release_memory()
        is_alone = len(scheduler.running) == 1
        tokens = self.plan.max_num_batched_tokens
        scheduler.preempt(admitted, self._manager)
        if tokens is not None and tokens > _LEAST_BATCHED_TOKENS:
            self.plan = dataclasses.replace(self.plan, max_num_batched_tokens=tokens // 2)
            self._is_reduced = True  # other products from now on: answers say so
            self._runner.plan = self.plan
        elif is_alone:
            yield self._too_large(scheduler.ready.popleft())

    def _decode(self) -> Iterator[Sequence]:
        """Add a token to every running sequence."""
        try:
            launched = self._runner.decode(self._scheduler.running)
            if launched is not None:
                self._launched.append(launched)
                self._scheduler.decoded()
            return
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        yield from self._restart()

    def _restart(self) -> Iterator[Sequence]:
        """Let all running sequences start anew, half as many together; yields one that is alone already.

        A step that failed has changed the state of some of them, which a start from the prompt makes good. Those that
        had ended before, with a step that was not read yet, are yielded with their answers.
        """
        scheduler = self._scheduler
        is_alone = len(scheduler.running) == 1
        while self._launched:
            yield from self._read(self._launched.popleft())
        self._runner.release_memory()
        if not scheduler.running:
            return
        scheduler.preempt(list(scheduler.running), self._manager)
        if is_alone:
            yield self._too_large(scheduler.ready.popleft())

    def _read(self, launched: Launched) -> Iterator[Sequence]:
        """Wait for a step; yields the sequences that it finished.

        Those that ended a step before, or were withdrawn, bear nothing of it: the others do.
        """
        outputs, running = self._runner.read(launched), self._scheduler.running
        going_on = {index: each for index, each in launched.sequences.items() if running.get(index) is each}
        for index, sequence in going_on.items():
            if launched.decoding is not None:
                sequence.decode.append((launched.decoding, 1 / len(going_on)))
                sequence.batch_size = max(sequence.batch_size, len(going_on))
            if (output := outputs.get(index)) is None:
                continue
            self._scheduler.free(index, self._manager)
            sequence.output, sequence.batch_size = output, max(1, sequence.batch_size)
            sequence.is_preempted |= self._is_reduced
            self._release_pages(sequence)
            yield sequence

    def _forget_launched(self) -> None:
        """Wait for the steps that are not read, and let go of what they computed."""
        while self._launched:
            self._runner.read(self._launched.popleft())

    # --- memory ---

    def _make_room_for_examples(self) -> None:
        """Let the KV cache grow by what each sequence of a batch begins with, once, as far as there is memory."""
        length = max((sequence.prompt.shared_length for sequence in self._scheduler.ready), default=0)
        if length > self._shared_length and not self._scheduler.running:
            self._shared_length = length
            wanted = self.plan.slots + (self._scheduler.max_num_seqs + 1) * length
            self._grow(min(wanted, self.plan.most_slots))

    def _grow(self, slots: int) -> bool:
        """Make room in the KV cache for a long prompt; says whether that was possible."""
        assert self._runner.cache is not None
        if slots <= self._runner.cache.slots:
            return False
        if self._allocate(self.plan, slots):
            self._runner.record_graph()
            return True
        if not self._allocate(self.plan, self.plan.slots):
            raise ModelError("the memory of the GPU has been taken by another program")
        self._runner.record_graph()
        return False

    def _allocate(self, plan: MemoryPlan, slots: int) -> bool:
        self._forget_launched()
        try:
            self._runner.allocate(plan, slots)
        except RuntimeError as error:  # the allocator of the host raises no torch.OutOfMemoryError
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
        else:
            self._manager = KVCacheManager(1, slots)  # slot 0 belongs to no sequence
            return True
        self._runner.release_memory()
        return False

    def _release_pages(self, sequence: Sequence) -> None:
        for page in sequence.page_ids:
            self._runner.features.release(page)

    def _too_large(self, sequence: Sequence) -> Sequence:
        return self._failed(
            sequence, f"a prompt of {len(sequence.prompt.tokens)} tokens does not fit the memory, even by itself"
        )

    def _failed(self, sequence: Sequence, detail: str) -> Sequence:
        sequence.failure = Failure(FailureKind.OUT_OF_MEMORY, detail)
        self._release_pages(sequence)
        return sequence
