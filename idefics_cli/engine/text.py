"""The text model over packed tokens: rows of any length one after another, keys and values in a cache of slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.linear import Linear
from idefics_cli.engine.operations import Operations, Segments

_ALIGNMENT = 8  # rows of the head: 16 bytes in bfloat16, what fast matrix products ask for
_UNLIMITED = 2**30


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one row, and where they stand."""

    length: int
    own_start: int
    """Slot of the row's first own position; the span begins there."""
    prefix_start: int = 0
    prefix_length: int = 0


class Cache:
    """Keys and values of every layer: (layers, slots, kv heads, dim)."""

    def __init__(self, text: Text, slots: int) -> None:
        shape = (len(text.layers), slots, text.kv_heads, text.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=text.dtype, device=text.device) for _ in range(2))

    @property
    def slots(self) -> int:
        """Positions that it holds."""
        return self.keys.shape[1]


class Text:
    """The text model and its head; it shares its weights with the model."""

    def __init__(self, model: Any, device: torch.device, *, fp8: bool = False) -> None:
        text = model.model.text_model
        config = text.config
        self.head_dim = int(text.layers[0].self_attn.head_dim)
        self.kv_heads = int(config.num_key_value_heads)
        self.device, self.dtype, self._fp8 = device, text.embed_tokens.weight.dtype, fp8
        self._window = int(getattr(config, "sliding_window", None) or _UNLIMITED)
        self._embedding = text.embed_tokens.to(device).weight.data
        self.layers = [_Layer(layer.to(device), fp8) for layer in text.layers]
        self._norm = text.norm.to(device)
        head = model.lm_head.to(device)
        self._vocabulary = len(head.weight)
        self._head = Linear(functional.pad(head.weight.data, (0, 0, 0, -self._vocabulary % _ALIGNMENT)))
        head.weight.data = self._head.weight[: self._vocabulary]
        positions = torch.arange(config.max_position_embeddings, device=device)
        with torch.inference_mode():
            cos, sin = text.rotary_emb.to(device)(torch.zeros(1, device=device), positions[None])
        # Both halves of a head turn by the same angles.
        self._cos, self._sin = (half[0, :, : self.head_dim // 2].contiguous() for half in (cos, sin))

    @property
    def longest(self) -> int:
        """Positions that the model knows."""
        return len(self._cos)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (tokens, width)."""
        return functional.embedding(tokens, self._embedding)

    def forward(
        self, hidden: Tensor, positions: Tensor, slots: Tensor, segments: Segments, cache: Cache, operations: Operations
    ) -> Tensor:
        """Run packed embeddings (tokens, width) through the layers; returns normed states of the same shape.

        Args:
            hidden: embeddings; reused.
            positions: int32 (tokens,), from 0 at each row's start.
            slots: int32 (tokens,), where each token's keys and values go.
            segments: what each row's queries see.
            cache: read and written.
            operations: plain or kernels.

        """
        change = None
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            hidden, normed = operations.add_norm(hidden, change, *layer.before, fp8=self._fp8)
            qkv = layer.qkv(normed, operations)
            queries = operations.rotate_and_store(qkv, self._cos, self._sin, positions, slots, keys, values)
            change = layer.out(operations.attend(queries, keys, values, segments, self._window), operations)
            hidden, normed = operations.add_norm(hidden, change, *layer.after, fp8=self._fp8)
            active = operations.gated_silu(layer.gate_up(normed, operations), fp8=self._fp8)
            change = layer.down(active, operations)
        _, normed = operations.add_norm(hidden, change, self._norm.weight, None, self._norm.variance_epsilon)
        assert isinstance(normed, Tensor)
        return normed

    def prefill(self, hidden: Tensor, spans: Sequence[Span], cache: Cache, operations: Operations) -> Tensor:
        """Run the packed embeddings of whole spans; returns the last state of each, (spans, width)."""
        layout = _Layout(spans, self.device)
        states = self.forward(hidden, layout.positions, layout.slots, layout.segments, cache, operations)
        return states[layout.last]

    def logits(self, states: Tensor, operations: Operations) -> Tensor:
        """Return float32 logits (rows, vocabulary)."""
        return self._head(states, operations)[:, : self._vocabulary].float()


class _Layer:
    def __init__(self, layer: Any, fp8: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, layer.post_attention_layernorm
        self.before, self.after = ((norm.weight.data, None, float(norm.variance_epsilon)) for norm in norms)
        self.qkv = Linear.of(attention.q_proj, attention.k_proj, attention.v_proj, fp8=fp8)
        self.out = Linear.of(attention.o_proj, fp8=fp8)
        self.gate_up, self.down = Linear.of(mlp.gate_proj, mlp.up_proj, fp8=fp8), Linear.of(mlp.down_proj, fp8=fp8)


class _Layout:
    """The index tensors of packed spans, brought to the device in one copy."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        lengths = torch.tensor([span.length for span in spans])
        ends = lengths.cumsum(0)
        prefix = torch.tensor([span.prefix_length for span in spans])
        own = torch.tensor([span.own_start for span in spans])
        step = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
        parts = [
            step + prefix.repeat_interleave(lengths),
            step + own.repeat_interleave(lengths),
            ends - 1,
            ends - lengths,
            lengths,
            torch.tensor([span.prefix_start for span in spans]),
            prefix,
            own,
        ]
        packed = to_device(torch.cat(parts).to(torch.int32), device)
        sizes = [len(part) for part in parts]
        self.positions, self.slots, self.last, start, length, prefix_start, prefix, own = torch.split(packed, sizes)
        self.segments = Segments(start, length, prefix_start, prefix, own, length, int(lengths.max()))


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor without waiting for the GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
