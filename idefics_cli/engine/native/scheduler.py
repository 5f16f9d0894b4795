"""Which sequences are encoded, prefilled and decoded next. Policy only: no tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from enum import Enum

from idefics_cli.engine.native.kv_cache import KVCacheManager
from idefics_cli.engine.native.sequence import Sequence

_STEPS_BETWEEN_PREFILLS = 4
_STEPS_BETWEEN_ENCODINGS = 5


class Action(Enum):
    """What the model does next."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"
    NOTHING = "nothing"


class Scheduler:
    """Sequences that wait for their pages, that are ready for prefill, and that are running."""

    def __init__(
        self, max_num_seqs: int, max_new_tokens: int, *, is_padded: bool = False, is_shared: bool = False
    ) -> None:
        """Begin with nothing to do.

        Args:
            max_num_seqs: sequences decoded together, at most.
            max_new_tokens: of an answer.
            is_padded: whether a prefill takes nearly as long for one sequence as for several, and a step for some as
                for all: prefills of few then wait for some steps.
            is_shared: whether many clients ask, who ask again once they are answered.

        """
        self.max_num_seqs = max_num_seqs
        self._is_padded, self._is_shared = is_padded, is_shared
        self._since_prefill, self._since_encoding = 0, _STEPS_BETWEEN_ENCODINGS  # steps of decoding
        self.running: dict[int, Sequence] = {}
        """By their index in the state of decoding."""
        self.ready: deque[Sequence] = deque()
        """All their pages are encoded; in the order of arrival."""
        self._waiting: dict[Sequence, set[str]] = {}
        """The pages that each still waits for; in the order of arrival."""
        self._overtaking = 0
        """Sequences that were admitted while others wait, since a page was encoded."""
        self._max_new_tokens = max_new_tokens
        self._indices = max_num_seqs

    @property
    def has_work(self) -> bool:
        """Whether any sequence is on its way."""
        return bool(self._waiting or self.ready or self.running)

    @property
    def waiting(self) -> int:
        """How many sequences are not running yet."""
        return len(self._waiting) + len(self.ready)

    def add(self, sequence: Sequence, missing_pages: Iterable[str]) -> None:
        """Take a new sequence, and the pages of it that are not encoded."""
        missing = set(missing_pages)
        if missing:
            if not self._waiting:
                self._overtaking = 0
            self._waiting[sequence] = missing
        else:
            self.ready.append(sequence)

    def next_action(self) -> Action:
        """Choose what throughput gains most from: full batches of decoding, fed by prefills of several sequences.

        Once a quarter of the batch is free, pages are encoded until the ready sequences fill it, or none is left to
        encode; then they are prefilled together. Where sequences come one by one, those of some steps are.

        Where clients share the engine and all have room in the batch, those that are running go on between encodings.
        Held up until every page is encoded they would end together and ask again together, while the device has
        nothing to do, and who comes with a new page would wait for all of them.

        Who waits for a page is overtaken by a batch of those whose pages are known, at most: these may never end.
        """
        running, ready, waiting = len(self.running), len(self.ready), len(self._waiting)
        free, pending = self.max_num_seqs - running, ready + waiting
        quarter, half = max(1, self.max_num_seqs // 4), max(1, self.max_num_seqs // 2)
        if running and free < min(quarter, pending):
            return Action.DECODE
        takes_turns = self._is_shared and pending <= free
        wanted = min(quarter if takes_turns else free, pending)
        goes_on = takes_turns and running >= half and self._since_encoding < _STEPS_BETWEEN_ENCODINGS
        is_due = self._overtaking >= self.max_num_seqs
        if waiting and (is_due or (ready < wanted and not goes_on)):
            return Action.ENCODE
        is_early = self._is_padded and running >= quarter and self._since_prefill < _STEPS_BETWEEN_PREFILLS
        if ready and not (is_early and ready < min(quarter, free)):
            return Action.PREFILL
        return Action.DECODE if running else Action.NOTHING

    def decoded(self) -> None:
        """Note a step of decoding."""
        self._since_prefill += 1
        self._since_encoding += 1

    # --- pages ---

    def next_pages(self, count: int) -> list[tuple[str, list[Sequence]]]:
        """Return the pages that the first waiting sequences lack, at most so many, and who waits for each."""
        self._since_encoding, self._since_prefill = 0, _STEPS_BETWEEN_PREFILLS  # who is ready then joins at once
        self._overtaking = 0
        pages: dict[str, list[Sequence]] = {}
        for sequence, missing in self._waiting.items():
            for page in sequence.page_ids:
                if page in missing and (page in pages or len(pages) < count):
                    users = pages.setdefault(page, [])
                    if sequence not in users:
                        users.append(sequence)
        return list(pages.items())

    def page_encoded(self, page: str, users: Iterable[Sequence]) -> None:
        """Note that a page is encoded; sequences that lack none any more become ready."""
        for sequence in users:
            missing = self._waiting.get(sequence)  # None: dropped meanwhile, for another page's sake
            if missing is None:
                continue
            missing.discard(page)
            if not missing:
                del self._waiting[sequence]
                self.ready.append(sequence)

    def drop(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Let go of sequences; returns those of them that were waiting."""
        return [sequence for sequence in sequences if self._waiting.pop(sequence, None) is not None]

    def remove(self, sequence: Sequence, cache: KVCacheManager) -> bool:
        """Let go of a sequence wherever it is; says whether it was there."""
        for index, running in self.running.items():
            if running is sequence:
                self.free(index, cache)
                return True
        if sequence in self.ready:
            self.ready.remove(sequence)
            return True
        return self._waiting.pop(sequence, None) is not None

    # --- the batch ---

    def admit(self, cache: KVCacheManager) -> list[int]:
        """Move ready sequences to the batch while there are room and slots for them; returns their indices."""
        free = iter([index for index in range(self._indices) if index not in self.running])
        admitted = []
        while self.ready and len(self.running) < self.max_num_seqs:
            sequence = self.ready[0]
            prefix = cache.acquire_prefix(sequence.prefix_key, sequence.prompt.prefix_length, sequence.head)
            if prefix is None:
                break
            start = cache.allocate(self._suffix_slots(sequence))
            if start is None:
                cache.release_prefix(prefix)
                break
            sequence.prefix, sequence.suffix_start = prefix, start
            index = next(free)
            self.running[index] = self.ready.popleft()
            admitted.append(index)
            self._since_prefill = 0
            self._overtaking += 1
        return admitted

    def free(self, index: int, cache: KVCacheManager) -> Sequence:
        """Take a sequence out of the batch, and its slots from it."""
        sequence = self.running.pop(index)
        assert sequence.prefix is not None
        cache.release_prefix(sequence.prefix)
        cache.free(sequence.suffix_start, self._suffix_slots(sequence))
        sequence.prefix = None
        return sequence

    def preempt(self, indices: SequenceOf[int], cache: KVCacheManager) -> None:
        """Send sequences back for want of memory, to start anew with half as many in the batch."""
        together = len(self.running)
        for index in reversed(indices):
            sequence = self.free(index, cache)
            sequence.is_preempted = True
            self.ready.appendleft(sequence)
        self.max_num_seqs = max(1, min(self.max_num_seqs, together) // 2)

    def slots_of(self, sequence: Sequence) -> int:
        """Return the slots that a sequence takes if it shares none."""
        return sequence.prompt.shared_length + sequence.prompt.prefix_length + self._suffix_slots(sequence)

    def _suffix_slots(self, sequence: Sequence) -> int:
        most = sequence.rules.max_new_tokens if sequence.rules is not None else self._max_new_tokens
        return len(sequence.suffix) + most
