"""Free answers: a token for each sequence in a step, the most probable one or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.native.decode import Growing, Start, StepDecoder
from idefics_cli.engine.native.logits_processors import logits_processors
from idefics_cli.engine.native.models.decoder import Decoder, KVCache
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.sampling import Sampler
from idefics_cli.engine.native.sequence import Output
from idefics_cli.engine.native.transfer import to_device


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
            has_stop: says of an answer's tokens whether their text holds one of some stop strings.

        """
        super().__init__(model, cache, ops, max_num_seqs=max_num_seqs, rows=rows, rules=rules)
        device, self._has_stop = model.device, has_stop
        self._logprob = torch.zeros(self._size, device=device)
        """Of the token that the next step runs through the model."""
        self._processors = logits_processors(rules, model, self._size, self._budget)
        self._sampler = Sampler(self._size, device)
        self._is_drawn = [False] * max_num_seqs
        self._draws = self._has_drawn = bool(rules.temperature)
        """Whether any row of this step is drawn, and whether any of any step was."""

    def _chosen(self) -> Sequence[Tensor]:
        """See `StepDecoder`."""
        return self._token, self._logprob

    def _outputs(self, rows: Sequence[tuple[int, Growing]], chosen: Sequence[np.ndarray]) -> dict[int, Output]:
        """See `StepDecoder`: answers end with an end token, behind a stop string, or at their limit."""
        tokens, logprobs = (one.tolist() for one in chosen)
        outputs = {}
        for index, growing in rows:
            growing.tokens.append(tokens[index])
            growing.logprobs.append(logprobs[index])
            is_ended = tokens[index] in self._rules.eos_token_ids or self._is_stopped(growing)
            if is_ended or growing.read == growing.most_steps:
                growing.is_over = True
                logprob = _sum_in_order(growing.logprobs)
                whole, scores = tuple(growing.tokens), tuple(growing.logprobs)
                outputs[index] = Output(whole, is_ended, logprob, logprobs=scores)
        return outputs

    def _is_stopped(self, growing: Growing) -> bool:
        has_stop = self._has_stop
        return bool(growing.stop) and has_stop is not None and has_stop(growing.tokens, growing.stop)

    def _takes_recorded_step(self, indices: Sequence[int]) -> bool:
        """See `StepDecoder`: the one that is recorded draws if the decoder's own rules do."""
        recorded = bool(self._rules.temperature)
        self._draws = any(self._is_drawn[index] for index in indices) if indices else recorded
        return self._draws == recorded

    def _begin(self, index: Tensor, starts: Sequence[Start]) -> None:
        """See `StepDecoder`."""
        rules = [start.rules or self._rules for start in starts]
        for start, each in zip(starts, rules, strict=True):
            self._is_drawn[start.index] = bool(each.temperature)
        for processor in self._processors:
            processor.start(index, [start.prompt for start in starts])
        self._draws = any(self._is_drawn[start.index] for start in starts)
        self._has_drawn |= self._draws
        if self._has_drawn:  # also of those that do not draw, whose index may be that of one that did
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
        self._logprob[index] = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
        self._token[index] = token
        self._count[index] = count + 1
        for processor in self._processors:
            processor.note(index, token)


def _sum_in_order(logprobs: Sequence[float]) -> float:
    """Return the sum as float32 numbers added up one by one give it, in any batch and on any device."""
    return float(np.add.accumulate(np.array(logprobs, np.float32))[-1])
