"""The operations between the matrix products: what they compute, and which of two forms of them runs.

`plain` is the reference, in torch, for any device. `kernels` is the same in Triton, for GPUs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Which keys each row's queries see: a shared prefix, then the row's own positions. All are int32 (rows,)."""

    query_start: Tensor
    """Index of the row's first query among the packed ones."""
    query_length: Tensor
    prefix_start: Tensor
    """Slot of the prefix's first position in the cache."""
    prefix_length: Tensor
    own_start: Tensor
    own_length: Tensor
    """Own positions, those of the queries, which are the last of them, included."""
    longest_query: int


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows in fp8 (float8_e4m3fn), and the float32 scales (tokens, 1) that bring them back."""

    values: Tensor
    scales: Tensor


Rows = Tensor | Quantized
"""What a matrix product takes: (tokens, width)."""


class Operations(Protocol):
    """Tensors are (tokens, width) unless said otherwise; with `fp8`, results come quantized."""

    def add_norm(
        self,
        hidden: Tensor,
        change: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        *,
        fp8: bool = False,
    ) -> tuple[Tensor, Rows]:
        """Return hidden + change, and its norm: LayerNorm with a bias, RMSNorm without; `hidden` may be reused."""

    def gated_silu(self, gate_up: Tensor, *, fp8: bool = False) -> Rows:
        """Return silu(gate) * up of (tokens, 2 * width)."""

    def gelu(self, rows: Tensor, *, fp8: bool = False) -> Rows:
        """Return GELU, in its tanh form."""

    def quantized(self, rows: Tensor) -> Quantized:
        """Quantize each row by its largest number."""

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Rotate queries and keys by their positions; store keys and values in their slots of the cache.

        Args:
            qkv: (tokens, (heads + 2 * kv heads) * dim).
            cos: float32 (positions, dim / 2); `sin` likewise.
            positions: int32 (tokens,); `slots` likewise.
            sin: see `cos`.
            slots: see `positions`.
            keys: (slots, kv heads, dim), written to; `values` likewise.
            values: see `keys`.

        Returns:
            Queries (tokens, heads * dim), perhaps a view of `qkv`.

        """

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, segments: Segments, window: int) -> Tensor:
        """Causal attention of packed queries (tokens, heads * dim) over the cache; returns the same shape.

        A query at position p sees positions above p - window.
        """

    def attend_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention without a mask over (n, heads, tokens, dim)."""


def has_kernels(device: torch.device, head_dim: int) -> bool:
    """Whether the Triton kernels can run here."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_dim & (head_dim - 1) == 0
    )
