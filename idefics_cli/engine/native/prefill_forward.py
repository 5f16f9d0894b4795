"""Runs batches of pieces of prompts through the decoder; on a GPU those of questions alone by a CUDA graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.native.models.decoder import Decoder, KVCache, PackedSegments, pack, rows_packed, to_device
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.prefill import Piece, copy_heads

_RUNS_BEFORE_RECORDING = 2  # a single question is not worth a graph
_LONGEST_RECORDED = 64  # tokens of a piece: the graph launches attention for as many queries of each, needed or not

_log = logging.getLogger(__name__)


class PrefillForward:
    """From pieces of prompts to their last hidden states; their keys and values go to the cache."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, ops: Ops, image_token_id: int, *, recorded_tokens: int, rows: int
    ) -> None:
        """Take the model.

        Args:
            decoder: the text model.
            cache: read and written.
            ops: torch or Triton.
            image_token_id: of the tokens that image features take the place of.
            recorded_tokens: of a batch that is worth a graph where kernels run.
            rows: pieces of such a batch, at most.

        """
        self._decoder, self._cache, self._ops = decoder, cache, ops
        self._image_token_id = image_token_id
        self._tokens, self._rows = recorded_tokens, rows
        self._is_recording = False
        self._runs = 0
        self._graph: _Graph | None = None

    def record_when_used(self) -> None:
        """Let the graph be recorded once some batches have come that it fits; for kernels only."""
        self._is_recording = self._ops is not torch_ops

    def release_memory(self) -> None:
        """Drop the graph, after memory ran out; from now on kernels are launched one by one."""
        self._graph, self._is_recording = None, False

    def run(self, pieces: Sequence[Piece], *, padded_to: int) -> Tensor:
        """Compute pieces, filled up to so many tokens; returns the last hidden state of each, (pieces, width)."""
        if padded_to == self._tokens and self._takes_graph(pieces) and (graph := self._recorded()) is not None:
            return graph.replay(_packed(pieces, padded_to, self._rows))[: len(pieces)]
        host = _packed(pieces, padded_to, len(pieces))
        tokens = max(padded_to, sum(len(piece.tokens) for piece in pieces))
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

    def _recorded(self) -> _Graph | None:
        """Return the graph, recorded once it pays and where memory suffices."""
        if self._graph is None and self._is_recording:
            self._runs += 1
            if self._runs > _RUNS_BEFORE_RECORDING:
                with contextlib.suppress(torch.OutOfMemoryError):
                    size = self._tokens + rows_packed(self._tokens, self._rows)
                    self._graph = _Graph(self._embedded, size, self._decoder.device)
                    return self._graph
                self.release_memory()
                torch.cuda.empty_cache()
                _log.warning("no memory for a CUDA graph of questions: they are launched kernel by kernel")
        return self._graph

    def _embedded(self, packed: Tensor) -> Tensor:
        """Return the last states of what `_packed` made for the graph."""
        hidden = self._decoder.embed(packed[: self._tokens])
        return self._last_states(hidden, packed[self._tokens :], _LONGEST_RECORDED)

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

    def __init__(self, run: Callable[[Tensor], Tensor], size: int, device: torch.device) -> None:
        self._packed = torch.zeros(size, dtype=torch.int32, device=device)  # segments of no tokens, all to slot 0
        run(self._packed)  # what is set up at first use is not recorded
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._last = run(self._packed)

    def replay(self, packed: Tensor) -> Tensor:
        """Run a batch; the result is the caller's, the next replay leaves it as it is."""
        self._packed.copy_(to_device(packed, self._packed.device), non_blocking=True)
        self._graph.replay()
        return self._last.clone()
