"""What generation settings do to logits, token by token, as the processors of transformers' `generate` do it.

All state lies on the device, and shapes are fixed, so that a step can be recorded as a CUDA graph. Logits are float32
(rows, width), `index` (rows,) says which sequence a row belongs to, `count` (rows,) how many tokens it has so far.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.native.models.decoder import Decoder
from idefics_cli.engine.native.transfer import to_device

_NO_TOKEN = -1


class LogitsProcessor:
    """One thing that is done to logits; this one does nothing."""

    def start(self, index: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """Take new sequences, each at an index of its own, and the tokens of their prompts."""

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """Return the logits as they are to be; those given may be reused."""
        return logits

    def note(self, index: Tensor, token: Tensor) -> None:
        """Take the token (rows,) that each sequence goes on with."""


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens of the prompt and the answer less probable (Keskar et al., CTRL, 2019)."""

    def __init__(self, penalty: float, size: int, width: int, device: torch.device) -> None:
        self._penalty = penalty
        self._seen = torch.zeros(size, width, dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)  # a graph can't copy a number from the host

    def start(self, index: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """See `LogitsProcessor`."""
        seen = torch.zeros(len(prompts), self._seen.shape[1], dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
        self._seen[index] = to_device(seen, index.device)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        penalized = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._seen[index], penalized, logits)

    def note(self, index: Tensor, token: Tensor) -> None:
        """See `LogitsProcessor`."""
        self._seen[index, token] = self._true


class NoRepeatNgram(LogitsProcessor):
    """Forbids what would complete n tokens that stand in the prompt or the answer already."""

    def __init__(self, ngram_size: int, size: int, length: int, device: torch.device) -> None:
        """Allocate the tokens of `size` sequences of `length` tokens at most."""
        self._before = ngram_size - 1
        self._tokens = torch.full((size, length), _NO_TOKEN, dtype=torch.long, device=device)
        self._length = torch.zeros(size, dtype=torch.long, device=device)
        self._offsets = torch.arange(-self._before, 0, device=device)

    def start(self, index: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """See `LogitsProcessor`."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        padded = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_value=_NO_TOKEN)
        self._tokens.index_fill_(0, index, _NO_TOKEN)
        self._tokens[index, : padded.shape[1]] = to_device(padded, index.device)
        self._length[index] = to_device(lengths, index.device)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        tokens, width = self._tokens[index], logits.shape[1]  # (rows, length)
        last = tokens.gather(1, (self._length[index][:, None] + self._offsets).clamp(min=0))  # (rows, n - 1)
        nexts = tokens[:, self._before :]
        is_repeated = nexts != _NO_TOKEN
        for offset in range(self._before):
            is_repeated = is_repeated & (tokens[:, offset : offset + nexts.shape[1]] == last[:, offset, None])
        return _without(logits, torch.where(is_repeated, nexts, width))

    def note(self, index: Tensor, token: Tensor) -> None:
        """See `LogitsProcessor`."""
        position = self._length[index].clamp(max=self._tokens.shape[1] - 1)
        self._tokens[index, position] = token
        self._length[index] = position + 1


class BadWords(LogitsProcessor):
    """Forbids the last token of words of several tokens where the others stand before it."""

    def __init__(self, words: Collection[Sequence[int]], size: int, device: torch.device) -> None:
        longest = max(map(len, words)) - 1
        rows = [[_NO_TOKEN] * (longest - len(word) + 1) + list(word) for word in words]
        table = torch.tensor(rows, device=device)
        self._heads, self._lasts = table[:, :-1], table[:, -1]  # (words, longest), (words,)
        self._tail = torch.full((size, longest), _NO_TOKEN, dtype=torch.long, device=device)
        """The last tokens of each sequence."""

    def start(self, index: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """See `LogitsProcessor`."""
        longest = self._tail.shape[1]
        tails = torch.tensor([([_NO_TOKEN] * longest + list(prompt))[-longest:] for prompt in prompts])
        self._tail[index] = to_device(tails, index.device)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        is_next = ((self._tail[index][:, None] == self._heads) | (self._heads == _NO_TOKEN)).all(-1)  # (rows, words)
        return _without(logits, torch.where(is_next, self._lasts, logits.shape[1]))

    def note(self, index: Tensor, token: Tensor) -> None:
        """See `LogitsProcessor`."""
        self._tail[index] = torch.cat([self._tail[index][:, 1:], token[:, None]], 1)


class MinNewTokens(LogitsProcessor):
    """Forbids the end before an answer has so many tokens."""

    def __init__(self, rules: GenerationRules, size: int, width: int, device: torch.device) -> None:
        self._least, self._least_in_all = rules.min_new_tokens, rules.min_length
        self._is_end = _is_among(rules.eos_token_ids, width, device)
        self._wanted = torch.zeros(size, dtype=torch.long, device=device)

    def start(self, index: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """See `LogitsProcessor`."""
        wanted = [max(self._least, self._least_in_all - len(prompt)) for prompt in prompts]
        self._wanted[index] = to_device(torch.tensor(wanted), index.device)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        return logits.masked_fill(self._is_end & (count < self._wanted[index])[:, None], -torch.inf)


class ForcedEnd(LogitsProcessor):
    """Leaves only the end as the last token that an answer may have."""

    def __init__(self, rules: GenerationRules, budget: Tensor, width: int, device: torch.device) -> None:
        self._budget = budget
        is_end = _is_among(rules.forced_eos_token_ids, width, device)
        self._forced = torch.zeros(width, device=device).masked_fill(~is_end, -torch.inf)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        return torch.where((count == self._budget[index] - 1)[:, None], self._forced, logits)


class SuppressAtBegin(LogitsProcessor):
    """Forbids tokens as the first of an answer."""

    def __init__(self, tokens: Collection[int], width: int, device: torch.device) -> None:
        self._is_suppressed = _is_among(tokens, width, device)

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        return logits.masked_fill(self._is_suppressed & (count == 0)[:, None], -torch.inf)


def logits_processors(rules: GenerationRules, model: Decoder, size: int, budget: Tensor) -> list[LogitsProcessor]:
    """Return what the rules ask for, in the order in which transformers does it; for plain greedy decoding nothing.

    Temperature and top-p come behind all of them, see `sampling`.

    Args:
        rules: of generation.
        model: whose logits they are.
        size: sequences that there may be.
        budget: most tokens of each sequence's answer (size,).

    """
    device, width = model.device, model.logits_width
    found: list[LogitsProcessor] = []
    if rules.repetition_penalty != 1.0:
        found.append(RepetitionPenalty(rules.repetition_penalty, size, width, device))
    if rules.no_repeat_ngram_size:
        found.append(NoRepeatNgram(rules.no_repeat_ngram_size, size, model.config.max_positions, device))
    if words := [word for word in rules.bad_words if min(word) >= 0 and max(word) < model.config.vocab_size]:
        found.append(BadWords(words, size, device))
    if (rules.min_new_tokens or rules.min_length) and rules.eos_token_ids:
        found.append(MinNewTokens(rules, size, width, device))
    if rules.forced_eos_token_ids:
        found.append(ForcedEnd(rules, budget, width, device))
    if rules.begin_suppressed_tokens:
        found.append(SuppressAtBegin(rules.begin_suppressed_tokens, width, device))
    return found


def _is_among(tokens: Collection[int], width: int, device: torch.device) -> Tensor:
    """Return which columns of logits belong to these tokens, bool (width,)."""
    found = torch.zeros(width, dtype=torch.bool)
    found[[token for token in tokens if 0 <= token < width]] = True
    return found.to(device)


def _without(logits: Tensor, tokens: Tensor) -> Tensor:
    """Forbid tokens (rows, n) row by row; those beyond the last column stand for none."""
    rows, width = logits.shape
    mask = torch.zeros(rows, width + 1, dtype=torch.bool, device=logits.device)
    return logits.masked_fill(mask.scatter_(1, tokens, True)[:, :width], -torch.inf)
