"""Free answers: a token for each sequence in a step, the most probable one or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.native.decode import Start, StepDecoder
from idefics_cli.engine.native.logits_processors import logits_processors
from idefics_cli.engine.native.models.decoder import Decoder, KVCache, to_device
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.sampling import Sampler
from idefics_cli.engine.native.sequence import Output


class TokenDecoder(StepDecoder):
    """Adds a token to each sequence in a step: the most probable one, or one that is drawn.

    A step in which no sequence draws is the one that is recorded; the others are launched kernel by kernel unless
    every sequence draws by the decoder's own rules.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        ops: Ops,
        *,
        max_num_seqs: int,
        rows: int,
        rules: GenerationRules,
        most_new_tokens: int = 0,
        has_stop: Callable[[Sequence[int], Sequence[str]], bool] | None = None,
    ) -> None:
        """See `StepDecoder`.

        Args:
            model: see there, as `cache`, `ops`, `max_num_seqs`, `rows` and `rules`.
            cache: likewise.
            ops: likewise.
            max_num_seqs: likewise.
            rows: likewise.
            rules: likewise.
            most_new_tokens: of a sequence with rules of its own, where that is more than `rules` say.
            has_stop: says of an answer's tokens whether their text holds one of some stop strings.

        """
        super().__init__(model, cache, ops, max_num_seqs=max_num_seqs, rows=rows, rules=rules)
        device, self._has_stop = model.device, has_stop
        self._eos = torch.tensor(sorted(rules.eos_token_ids), device=device, dtype=torch.long)
        length = max(rules.max_new_tokens, most_new_tokens)
        self._tokens = torch.full((self._size, length), -1, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(self._size, length, device=device)
        self._is_ended = torch.zeros(self._size, dtype=torch.bool, device=device)
        self._processors = logits_processors(rules, model, self._size, self._budget)
        self._sampler = Sampler(self._size, device)
        self._is_drawn = [False] * max_num_seqs
        self._copied: list[tuple[tuple[int, ...], tuple[float, ...]]] = [((), ())] * max_num_seqs
        """Tokens and log-probabilities that have been copied from the device."""
        self._stops: list[tuple[str, ...]] = [()] * max_num_seqs
        self._draws = self._has_drawn = bool(rules.temperature)
        """Whether any row of this step is drawn, and whether any of any step was."""

    def finished(self, indices: Sequence[int]) -> dict[int, Output]:
        """Return the outputs of sequences that have ended or reached the limit; waits for the device."""
        ended = dict(zip(indices, self._is_ended[list(indices)].tolist(), strict=True))
        stopping = [index for index in indices if self._stops[index]]
        if stopping and self._has_stop is not None:
            for index, tokens in zip(stopping, self._tokens[stopping].tolist(), strict=True):
                ended[index] |= self._has_stop([token for token in tokens if token >= 0], self._stops[index])
        done = [index for index in indices if ended[index] or self._lengths[index] >= self._budgets[index]]
        if not done:
            return {}
        return {
            index: Output(tokens, ended[index], _sum_in_order(logprobs), logprobs=logprobs)
            for index, (tokens, logprobs) in self.tokens_so_far(done).items()
        }

    def tokens_so_far(self, indices: Sequence[int]) -> Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]]:
        """See `StepDecoder`; waits for the device, and copies from it what is new since the last call."""
        starts = [len(self._copied[index][0]) for index in indices]
        counts = [self._lengths[index] - start for index, start in zip(indices, starts, strict=True)]
        most = max(counts)
        if most:
            # (2, sequences, most): the rows and columns of new tokens; what a sequence lacks is not read below
            at = torch.tensor([[*indices], starts])[:, :, None].repeat(1, 1, most)
            at[1] = (at[1] + torch.arange(most)).clamp(max=self._tokens.shape[1] - 1)
            rows, columns = to_device(at, self._tokens.device)
            new = zip(self._tokens[rows, columns].tolist(), self._logprobs[rows, columns].tolist(), strict=True)
            for index, count, (row, scores) in zip(indices, counts, new, strict=True):
                tokens, logprobs = self._copied[index]
                added = tuple(token for token in row[:count] if token >= 0)
                self._copied[index] = (*tokens, *added), (*logprobs, *scores[: len(added)])
        return {index: self._copied[index] for index in indices}

    @torch.inference_mode()
    def start(self, starts: Sequence[Start], hidden: Tensor) -> None:
        """See `StepDecoder`."""
        for start in starts:
            rules = start.rules or self._rules
            self._stops[start.index], self._is_drawn[start.index] = rules.stop, bool(rules.temperature)
            self._copied[start.index] = (), ()
        super().start(starts, hidden)

    def _takes_recorded_step(self, indices: Sequence[int]) -> bool:
        """See `StepDecoder`: the one that is recorded draws if the decoder's own rules do."""
        recorded = bool(self._rules.temperature)
        self._draws = any(self._is_drawn[index] for index in indices) if indices else recorded
        return self._draws == recorded

    def _begin(self, index: Tensor, starts: Sequence[Start]) -> None:
        """See `StepDecoder`."""
        self._tokens[index] = -1
        for processor in self._processors:
            processor.start(index, [start.prompt for start in starts])
        self._draws = any(self._is_drawn[start.index] for start in starts)
        self._has_drawn |= self._draws
        if self._has_drawn:  # also of those that do not draw, whose index may be that of one that did
            rules = [start.rules or self._rules for start in starts]
            numbers = torch.tensor([[each.temperature for each in rules], [1 - each.top_p for each in rules]])
            temperature, removed = to_device(numbers, index.device)
            keys = to_device(torch.tensor([start.random_key for start in starts]), index.device)
            self._sampler.start(index, temperature, removed, keys)

    def _choose(self, index: Tensor, logits: Tensor) -> None:
        """Take a token for each sequence and note it."""
        count = torch.minimum(self._count[index], self._budget[index] - 1)
        for processor in self._processors:
            logits = processor(logits, index, count)
        if self._draws:
            logits, token = self._sampler(logits, index, count)
        else:
            token = logits.argmax(-1)
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
        self._logprobs[index, count] = logprob
        self._tokens[index, count] = token
        self._count[index] = count + 1
        self._token[index] = token
        self._is_ended[index] = (token[:, None] == self._eos).any(1)
        for processor in self._processors:
            processor.note(index, token)


def _sum_in_order(logprobs: Sequence[float]) -> float:
    """Return the sum as float32 numbers added up one by one give it, in any batch and on any device."""
    return float(np.add.accumulate(np.array(logprobs, np.float32))[-1])
