"""Runs batches of pieces of prompts through the decoder; on a GPU those of questions alone by CUDA graphs."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.native.models.decoder import Decoder, KVCache, PackedSegments, pack, rows_packed
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.prefill import Piece, copy_heads
from idefics_cli.engine.native.transfer import to_device

_RUNS_BEFORE_RECORDING = 2  # a single question is not worth a graph
_LONGEST_RECORDED = 64  # tokens of a piece: the graph launches attention for as many queries of each, needed or not

_log = logging.getLogger(__name__)


class PrefillForward:
    """From pieces of prompts to their last hidden states; their keys and values go to the cache."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, ops: Ops, image_token_id: int, *, sizes: Sequence[int], rows: int
    ) -> None:
        """Take the model.

        Args:
            decoder: the text model.
            cache: read and written.
            ops: torch or Triton.
            image_token_id: of the tokens that image features take the place of.
            sizes: numbers of tokens that a batch may be filled up to, ascending; an answer is the same at each.
            rows: pieces of a batch that is worth a graph where kernels run, at most.

        """
        self._decoder, self._cache, self._ops = decoder, cache, ops
        self._image_token_id = image_token_id
        self._sizes, self._rows = sizes, rows
        self._is_recording = False
        self._runs: Counter[int] = Counter()
        self._graphs: dict[int, _Graph] = {}

    def record_when_used(self) -> None:
        """Let graphs be recorded once some batches have come that they fit; for kernels only."""
        self._is_recording = self._ops is not torch_ops

    def release_memory(self) -> None:
        """Drop the graphs, after memory ran out; from now on kernels are launched one by one."""
        self._is_recording = False
        self._graphs.clear()

    def run(self, pieces: Sequence[Piece], limit: int | None) -> Tensor:
        """Compute pieces; returns the last hidden state of each, (pieces, width).

        Args:
            pieces: a batch.
            limit: tokens that it is filled up to unless one of the sizes suffices; None computes what there is.

        """
        tokens = sum(len(piece.tokens) for piece in pieces)
        if limit is not None:
            tokens = next((size for size in self._sizes if tokens <= size < limit), limit)
        if tokens in self._sizes and self._takes_graph(pieces) and (graph := self._recorded(tokens)) is not None:
            return graph.replay(_packed(pieces, tokens, self._rows))[: len(pieces)]
        host = _packed(pieces, tokens, len(pieces))
        features = [piece.features for piece in pieces if piece.features is not None]
        images = (host[:tokens] == self._image_token_id).nonzero()[:, 0] if features else None
        packed = to_device(host, self._decoder.device)
        hidden = self._decoder.embed(packed[:tokens])
        if images is not None:
            hidden[to_device(images, self._decoder.device)] = torch.cat(features).to(hidden.dtype)
        copy_heads(pieces, self._cache)
        return self._last_states(hidden, packed[tokens:], max(len(piece.tokens) for piece in pieces))

    def _takes_graph(self, pieces: Sequence[Piece]) -> bool:
        return len(pieces) <= self._rows and all(
            piece.features is None and piece.copies is None and len(piece.tokens) <= _LONGEST_RECORDED
            for piece in pieces
        )

    def _recorded(self, tokens: int) -> _Graph | None:
        """Return the graph of so many tokens, recorded once it pays and where memory suffices."""
        if tokens not in self._graphs and self._is_recording:
            self._runs[tokens] += 1
            if self._runs[tokens] > _RUNS_BEFORE_RECORDING:
                with contextlib.suppress(torch.OutOfMemoryError):
                    graph = _Graph(self._embedded, tokens, self._rows, self._decoder.device, [*self._graphs.values()])
                    self._graphs[tokens] = graph
                    return graph
                self.release_memory()
                torch.cuda.empty_cache()
                _log.warning("no memory for a CUDA graph of questions: they are launched kernel by kernel")
        return self._graphs.get(tokens)

    def _embedded(self, packed: Tensor, tokens: int) -> Tensor:
        """Return the last states of what `_packed` made for a graph."""
        return self._last_states(self._decoder.embed(packed[:tokens]), packed[tokens:], _LONGEST_RECORDED)

    def _last_states(self, hidden: Tensor, indices: Tensor, longest: int) -> Tensor:
        packed = PackedSegments(indices, len(hidden), max_query_length=longest)
        states = self._decoder.forward(hidden, packed.positions, packed.slots, packed.metadata, self._cache, self._ops)
        return states[packed.last]


def _packed(pieces: Sequence[Piece], padded_to: int, rows: int) -> Tensor:
    """Return the tokens of pieces and their indices in one tensor on the host."""
    ids = [token for piece in pieces for token in piece.tokens]
    ids += [0] * (padded_to - len(ids))
    indices = pack([piece.segment for piece in pieces], len(ids), rows)
    return torch.from_numpy(np.concatenate([np.array(ids, np.int32), indices]))


class _Graph:
    """A batch, recorded once and replayed without the host's launching each kernel."""

    def __init__(
        self,
        run: Callable[[Tensor, int], Tensor],
        tokens: int,
        rows: int,
        device: torch.device,
        others: Sequence[_Graph],
    ) -> None:
        """Record `run` of so many tokens, in the memory of others: one is replayed at a time."""
        # Segments of no tokens, all to slot 0.
        self._packed = torch.zeros(tokens + rows_packed(tokens, rows), dtype=torch.int32, device=device)
        run(self._packed, tokens)  # what is set up at first use is not recorded
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=others[0].pool if others else None):
            self._last = run(self._packed, tokens)

    @property
    def pool(self) -> Any:
        """The memory that it computes in."""
        return self._graph.pool()

    def replay(self, packed: Tensor) -> Tensor:
        """Run a batch; the result is the caller's, the next replay leaves it as it is."""
        self._packed.copy_(to_device(packed, self._packed.device), non_blocking=True)
        self._graph.replay()
        return self._last.clone()
