"""Greedy decoding of sequences at positions of their own; a new one takes the index of one that has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from idefics_cli.engine.native.models.decoder import Decoder, KVCache, Segment, to_device
from idefics_cli.engine.native.ops.base import AttentionMetadata, Ops
from idefics_cli.engine.native.sequence import Output


class GreedyDecoder:
    """The state of the batch. It lies on the device, so that a step asks nothing of the host.

    Steps run over a fixed number of rows: what is lacking is filled up with a row of no sequence. The shapes of all
    products are then the same in every step, and an answer does not depend on how many are decoded with it.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        ops: Ops,
        *,
        max_num_seqs: int,
        rows: int,
        eos_token_ids: Collection[int],
        suppressed_tokens: Collection[int],
        max_new_tokens: int,
    ) -> None:
        """Allocate the state of sequences 0 to `max_num_seqs` - 1, decoded `rows` at a time."""
        self._model, self._cache, self._ops, self._rows = model, cache, ops, rows
        self._max_new_tokens, self._filler = max_new_tokens, max_num_seqs
        device, size = model.device, max_num_seqs + 1
        self._eos = torch.tensor(sorted(eos_token_ids), device=device, dtype=torch.long)
        self._suppressed = torch.tensor(sorted(suppressed_tokens), device=device, dtype=torch.long)
        self._location = torch.zeros(4, size, dtype=torch.int32, device=device)
        """Prefix start and length, suffix start and length."""
        self._limit = torch.zeros(size, dtype=torch.int32, device=device)
        """Suffix length at which a sequence stands still."""
        self._count = torch.zeros(size, dtype=torch.long, device=device)
        self._token = torch.zeros(size, dtype=torch.long, device=device)
        self._tokens = torch.full((size, max_new_tokens), -1, dtype=torch.long, device=device)
        self._logprob = torch.zeros(size, device=device)
        self._is_ended = torch.zeros(size, dtype=torch.bool, device=device)
        self._lengths = [0] * max_num_seqs  # tokens so far, as the host knows them
        self._graph: _Graph | None = None

    @torch.inference_mode()
    def record(self) -> None:
        """Record a step as a CUDA graph, which is replayed from then on."""
        self._graph = _Graph(self._step, [self._filler] * self._rows, self._model.device)

    @torch.inference_mode()
    def start(self, indices: Sequence[int], segments: Sequence[Segment], hidden: Tensor) -> None:
        """Begin sequences whose prompts are in the cache: choose their first tokens from the last hidden states.

        Args:
            indices: of the sequences.
            segments: where their prompts lie.
            hidden: (sequences, width).

        """
        device = self._model.device
        lengths = [segment.suffix_done + segment.length for segment in segments]
        location = [
            (segment.prefix_start, segment.prefix_length, segment.suffix_start, length)
            for segment, length in zip(segments, lengths, strict=True)
        ]
        limits = [length + self._max_new_tokens for length in lengths]
        packed = to_device(torch.tensor([*zip(*location, strict=True), limits], dtype=torch.int32), device)
        index = to_device(torch.tensor(indices), device)
        self._location[:, index], self._limit[index] = packed[:4], packed[4]
        self._count[index], self._logprob[index], self._tokens[index] = 0, 0.0, -1
        for start in range(0, len(indices), self._rows):
            some = slice(start, start + self._rows)
            lacking = self._rows - len(indices[some])
            padded = torch.cat([hidden[some], hidden.new_zeros(lacking, hidden.shape[1])])
            self._choose(self._index(indices[some]), padded)
        for sequence in indices:
            self._lengths[sequence] = 1

    @torch.inference_mode()
    def step(self, indices: Sequence[int]) -> None:
        """Add a token to each of the sequences."""
        for start in range(0, len(indices), self._rows):
            some = indices[start : start + self._rows]
            if self._graph is not None:
                self._graph.replay(self._padded(some))
            else:
                self._step(self._index(some))
        for sequence in indices:
            self._lengths[sequence] += 1

    def finished(self, indices: Sequence[int]) -> dict[int, Output]:
        """Return the outputs of sequences that have ended or reached the limit; waits for the device."""
        ended = dict(zip(indices, self._is_ended[list(indices)].tolist(), strict=True))
        done = [index for index in indices if ended[index] or self._lengths[index] >= self._max_new_tokens]
        if not done:
            return {}
        tokens, logprobs = self._tokens[done].tolist(), self._logprob[done].tolist()
        return {
            index: Output(tuple(token for token in row if token >= 0), ended[index], logprob)
            for index, row, logprob in zip(done, tokens, logprobs, strict=True)
        }

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
        self._choose(index, hidden)

    def _choose(self, index: Tensor, hidden: Tensor) -> None:
        """Take the most probable token of each sequence and note it."""
        logits = self._model.logits(hidden, self._ops).index_fill_(1, self._suppressed, -torch.inf)
        best = logits.argmax(-1)
        logprob = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(-1)
        count = self._count[index].clamp(max=self._max_new_tokens - 1)
        self._logprob[index] = self._logprob[index] + logprob
        self._tokens[index, count] = best
        self._count[index] = count + 1
        self._token[index] = best
        self._is_ended[index] = (best[:, None] == self._eos).any(1)


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
