"""The operations between the linear layers: what they compute, and which of two implementations runs.

`torch_ops` is the reference, for any device. `triton_ops` computes the same in Triton kernels, for GPUs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from idefics_cli.engine.native.ops.groupwise import GroupedWeight


class InputFormat(Enum):
    """What a linear layer takes; norms and activations write their results so."""

    PLAIN = "plain"
    """The dtype of the model."""
    FP8 = "fp8"
    """float8_e4m3fn with a scale for each row."""


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which keys the queries of each segment see: a shared prefix, then the segment's own positions.

    All are int32 (segments,).
    """

    query_start: Tensor
    """Index of the segment's first query among the packed ones."""
    query_length: Tensor
    prefix_start: Tensor
    """Slot of the prefix's first position in the KV cache."""
    prefix_length: Tensor
    suffix_start: Tensor
    """Slot of the first position behind the prefix."""
    suffix_length: Tensor
    """Positions behind the prefix; the queries are the last of them."""
    max_query_length: int

    def on_host(self) -> list[list[int]]:
        """Return the fields of each segment, in their order; waits for the device."""
        fields = (self.query_start, self.query_length, self.prefix_start, self.prefix_length)
        return torch.stack([*fields, self.suffix_start, self.suffix_length], 1).tolist()


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """Rows in float8_e4m3fn, (tokens, width), and the float32 scales, (tokens, 1), that bring them back."""

    values: Tensor
    scales: Tensor


Rows = Tensor | ScaledRows
"""What a linear layer takes: (tokens, width)."""


class Ops(Protocol):
    """Tensors are (tokens, width) unless said otherwise; `out` is the format of a result that a product takes."""

    def fused_add_layer_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, out: InputFormat
    ) -> tuple[Tensor, Rows]:
        """Return hidden + residual, and its LayerNorm; `hidden` may be reused."""

    def fused_add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: InputFormat
    ) -> tuple[Tensor, Rows]:
        """Return hidden + residual, and its RMSNorm; `hidden` may be reused."""

    def silu_and_mul(self, gate_up: Tensor, out: InputFormat) -> Rows:
        """Return silu(gate) * up of (tokens, 2 * width)."""

    def gelu(self, rows: Tensor, out: InputFormat) -> Rows:
        """Return GELU, in its tanh form."""

    def quantize(self, rows: Tensor) -> ScaledRows:
        """Scale each row by its largest magnitude."""

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Rotate queries and keys by their positions; store keys and values in their slots of the cache.

        Args:
            qkv: (tokens, (heads + 2 * kv heads) * head dim).
            cos: float32 (positions, head dim / 2); `sin` likewise.
            sin: see `cos`.
            positions: int32 (tokens,); `slots` likewise.
            slots: see `positions`.
            keys: (slots, kv heads, head dim), written to; `values` likewise.
            values: see `keys`.

        Returns:
            Queries (tokens, heads * head dim), perhaps a view of `qkv`.

        """

    def paged_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, metadata: AttentionMetadata, window: int
    ) -> Tensor:
        """Causal attention of packed queries (tokens, heads * head dim) over the cache; returns the same shape.

        A query at position p sees positions above p - window. The sum of a query is added up in an order that depends
        on its own segment alone.
        """

    def group_product(self, rows: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
        """Return rows (tokens, in) times a group-wise quantized weight: (tokens, out); meant for few rows.

        A row's result does not depend on how many rows there are.
        """

    def dequantize(self, weight: GroupedWeight, dtype: torch.dtype) -> Tensor:
        """Return a group-wise quantized weight (out, in) in a dtype."""

    def sdpa(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention without a mask over (n, heads, tokens, head dim)."""


def has_triton(device: torch.device, head_dim: int) -> bool:
    """Whether the Triton kernels can run here: NVIDIA GPUs from compute capability 8.0 on."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_dim & (head_dim - 1) == 0
    )
