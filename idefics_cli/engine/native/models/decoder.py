"""A decoder of the Llama kind over packed tokens: segments of any length in a row, keys and values in a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.families.base import DecoderConfig, RopeScaling
from idefics_cli.engine.native.ops.base import AttentionMetadata, InputFormat, Ops
from idefics_cli.engine.native.ops.linear import Linear
from idefics_cli.engine.native.weights import Weights

_ALIGNMENT = 8  # rows of the head: 16 bytes in bfloat16, what fast matrix products ask for
_UNLIMITED = 2**30


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence, and where their keys and values lie."""

    length: int
    """Tokens to be computed."""
    suffix_start: int
    """Slot of the first position behind the prefix."""
    suffix_done: int = 0
    """Positions behind the prefix that are in the cache already."""
    prefix_start: int = 0
    prefix_length: int = 0


class KVCache:
    """Keys and values of every layer: (layers, slots, kv heads, head dim)."""

    def __init__(self, config: DecoderConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, slots, config.num_kv_heads, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))

    @property
    def slots(self) -> int:
        """Positions that it holds."""
        return self.keys.shape[1]


class Decoder:
    """The text model and its head."""

    def __init__(self, weights: Weights, config: DecoderConfig, *, tie_word_embeddings: bool) -> None:
        prefix = "model.text_model."
        self.config, self.device, self.dtype = config, weights.device, weights.dtype
        self._window = config.sliding_window or _UNLIMITED
        self._embedding = weights.tensor(f"{prefix}embed_tokens.weight")
        self._layers = weights.layers(
            lambda index: _Layer(weights, f"{prefix}layers.{index}.", config.eps), config.num_layers
        )
        self._norm = weights.tensor(f"{prefix}norm.weight")
        head = self._embedding if tie_word_embeddings else weights.tensor("lm_head.weight")
        self._head = Linear(functional.pad(head, (0, 0, 0, -len(head) % _ALIGNMENT)))
        self._cos, self._sin = _rotary_tables(config, weights.device)

    @property
    def logits_width(self) -> int:
        """Columns of `logits`."""
        return self.config.vocab_size + -self.config.vocab_size % _ALIGNMENT

    @property
    def products(self) -> Iterator[Linear]:
        """The layers' matrix products; the head's is not among them."""
        for layer in self._layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens (n,): (n, width)."""
        return functional.embedding(tokens, self._embedding)

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        metadata: AttentionMetadata,
        cache: KVCache,
        ops: Ops,
    ) -> Tensor:
        """Run packed embeddings (tokens, width) through the layers; returns normed hidden states of the same shape.

        Args:
            hidden: embeddings; reused.
            positions: int32 (tokens,), from 0 at each sequence's start.
            slots: int32 (tokens,), where each token's keys and values go.
            metadata: what each segment's queries see.
            cache: read and written.
            ops: torch or Triton.

        """
        residual = None
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            # 1. attention: (tokens, width) -> (tokens, (heads + 2 kv heads) * head dim) -> (tokens, width)
            hidden, normed = ops.fused_add_rms_norm(hidden, residual, *layer.input_norm, layer.qkv.input_format)
            qkv = layer.qkv(normed, ops)
            queries = ops.rope_and_cache(qkv, self._cos, self._sin, positions, slots, keys, values)
            residual = layer.out(ops.paged_attention(queries, keys, values, metadata, self._window), ops)
            # 2. MLP: (tokens, width) -> (tokens, 2 * inner) -> (tokens, width)
            hidden, normed = ops.fused_add_rms_norm(hidden, residual, *layer.mlp_norm, layer.gate_up.input_format)
            residual = layer.down(ops.silu_and_mul(layer.gate_up(normed, ops), layer.down.input_format), ops)
        _, normed = ops.fused_add_rms_norm(hidden, residual, self._norm, self.config.eps, InputFormat.PLAIN)
        assert isinstance(normed, Tensor)
        return normed

    def logits(self, hidden: Tensor, ops: Ops) -> Tensor:
        """Return float32 logits of last hidden states (rows, width): (rows, vocabulary and padding of -inf).

        The padding stays, so that every row begins at an aligned address: sums over rows that do not are added up in
        an order that depends on the row's index.
        """
        logits = self._head(hidden, ops).float()
        logits[:, self.config.vocab_size :] = -torch.inf
        return logits


class _Layer:
    def __init__(self, weights: Weights, prefix: str, eps: float) -> None:
        self.input_norm = (weights.tensor(f"{prefix}input_layernorm.weight"), eps)
        self.mlp_norm = (weights.tensor(f"{prefix}post_attention_layernorm.weight"), eps)
        self.qkv = weights.linear([f"{prefix}self_attn.{part}_proj" for part in "qkv"])
        self.out = weights.linear([f"{prefix}self_attn.o_proj"])
        self.gate_up = weights.linear([f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"])
        self.down = weights.linear([f"{prefix}mlp.down_proj"])


class PackedSegments:
    """The index tensors of packed segments, views of one tensor on the device."""

    def __init__(self, packed: Tensor, tokens: int, *, max_query_length: int) -> None:
        """Take what `pack` has laid out, on the device, and its `tokens`."""
        rows = (len(packed) - 2 * tokens) // _OF_A_SEGMENT
        self.positions, self.slots, self.last, *fields = torch.split(packed, [tokens] * 2 + [rows] * _OF_A_SEGMENT)
        query_start, query_length, prefix_start, prefix_length, suffix_start, suffix_length = fields
        # Never 1: that is how attention knows decoding from the prefill of a single token.
        self.metadata = AttentionMetadata(
            query_start,
            query_length,
            prefix_start,
            prefix_length,
            suffix_start,
            suffix_length,
            max_query_length=max(2, max_query_length),
        )


_OF_A_SEGMENT = 7  # index tensors


def rows_packed(tokens: int, rows: int) -> int:
    """Return how many numbers `pack` makes of so many."""
    return 2 * tokens + _OF_A_SEGMENT * rows


def pack(segments: Sequence[Segment], tokens: int, rows: int) -> np.ndarray:
    """Return the indices of segments in their order, int32 (numbers,).

    Tokens that the segments lack are filled with some that write to slot 0, rows with segments of no tokens. It is done
    in NumPy: each operation of torch lets another thread have the interpreter, and a server's always wait for it.
    """
    packed = np.zeros(rows_packed(tokens, rows), np.int32)
    positions, slots = packed[:tokens], packed[tokens : 2 * tokens]
    by_row = packed[2 * tokens :].reshape(_OF_A_SEGMENT, rows)
    start = 0
    for row, segment in enumerate(segments):
        end = start + segment.length
        first = segment.prefix_length + segment.suffix_done
        slot = segment.suffix_start + segment.suffix_done
        positions[start:end] = np.arange(first, first + segment.length)
        slots[start:end] = np.arange(slot, slot + segment.length)
        by_row[:, row] = (
            end - 1,
            start,
            segment.length,
            segment.prefix_start,
            segment.prefix_length,
            segment.suffix_start,
            segment.suffix_done + segment.length,
        )
        start = end
    return packed


def _rotary_tables(config: DecoderConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 (positions, head dim / 2), of rotary embeddings (Su et al., RoFormer, 2021)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = torch.arange(config.max_positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(device), angles.sin().to(device)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch rotary frequencies as Llama 3.1 does: slow ones by the factor, fast ones not, those between in part.

    Slow and fast are counted in turns within the positions that the model was trained with before.
    """
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept
