"""The vision encoder of Idefics2 and Idefics3: SigLIP at native aspect ratio.

Crops of one shape go through together and without padding, so that no mask is needed. Activations are
(crops * patches, width).
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.families.base import Normalization, VisionConfig
from idefics_cli.engine.native.ops.base import InputFormat, Ops
from idefics_cli.engine.native.ops.linear import Linear
from idefics_cli.engine.native.weights import Weights

_ALIGNMENT = 8  # columns: 16 bytes in bfloat16, what fast matrix products ask for
_CACHED_SHAPES = 64


class VisionEncoder(Protocol):
    """Vision encoder and connector: from pixels to image features in the width of the text model."""

    def encode(self, crops: Tensor, ops: Ops, *, max_projected_patches: int) -> Tensor:
        """Encode uint8 crops (n, height, width, 3) to image features (n, image tokens, text width).

        Args:
            crops: on the device; pixels beyond the last whole patch are dropped.
            ops: torch or Triton.
            max_projected_patches: patches whose widest activations may exist together.

        """


class VisionTower:
    """From crops to the normed hidden states of their patches."""

    def __init__(self, weights: Weights, config: VisionConfig, normalization: Normalization) -> None:
        prefix = "model.vision_model."
        self._config, self._normalization = config, normalization
        patch = weights.tensor(f"{prefix}embeddings.patch_embedding.weight").flatten(1)
        self._patch_embedding = Linear(functional.pad(patch, (0, -patch.shape[1] % _ALIGNMENT)))
        patch_bias = weights.tensor(f"{prefix}embeddings.patch_embedding.bias")
        position_embedding = weights.tensor(f"{prefix}embeddings.position_embedding.weight")
        self._layers = weights.layers(
            lambda index: _TowerLayer(weights, f"{prefix}encoder.layers.{index}.", config), config.num_layers
        )
        self._norm = _layer_norm(weights, f"{prefix}post_layernorm", config.eps)
        # Of the tensors, not of this tower: a cycle would hold the weights until garbage is collected.
        offsets = functools.partial(_embedding_offsets, position_embedding, patch_bias, config.positions)
        self._offsets = functools.lru_cache(_CACHED_SHAPES)(offsets)

    def __call__(self, crops: Tensor, ops: Ops) -> Tensor:
        """Encode uint8 crops (n, height, width, 3) to normed patches (n * patches, width)."""
        size = self._config.patch_size
        count, rows, columns = len(crops), crops.shape[1] // size, crops.shape[2] // size
        hidden = self._patch_embedding(self._patches(crops, rows, columns), ops)
        hidden = (hidden.view(count, rows * columns, -1) + self._offsets(rows, columns)).flatten(0, 1)
        residual = None
        for layer in self._layers:
            hidden, residual = layer(hidden, residual, count, ops)
        _, normed = ops.fused_add_layer_norm(hidden, residual, *self._norm, InputFormat.PLAIN)
        assert isinstance(normed, Tensor)
        return normed

    def _patches(self, crops: Tensor, rows: int, columns: int) -> Tensor:
        """Cut crops into normalized patches, (n * rows * columns, 3 * patch * patch and padding)."""
        size, weight = self._config.patch_size, self._patch_embedding.weight
        pixels = normalize(crops[:, : rows * size, : columns * size], self._normalization, weight.dtype)
        patches = pixels.view(len(crops), 3, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        padded = pixels.new_zeros(len(crops) * rows * columns, weight.shape[1])
        padded[:, : 3 * size * size] = patches.reshape(len(padded), -1)
        return padded


def _embedding_offsets(embedding: Tensor, bias: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """Return position embeddings, of (side * side, width), with a bias (width,) added: (rows * columns, width)."""
    index = position_buckets(rows, side)[:, None] * side + position_buckets(columns, side)
    return embedding[index.flatten().to(embedding.device)] + bias


class _TowerLayer:
    """Attention and MLP of the vision encoder; the residual that it returns is added by the next norm."""

    def __init__(self, weights: Weights, prefix: str, config: VisionConfig) -> None:
        self._heads = config.num_heads
        self._attention_norm = _layer_norm(weights, f"{prefix}layer_norm1", config.eps)
        self._mlp_norm = _layer_norm(weights, f"{prefix}layer_norm2", config.eps)
        self._qkv = weights.linear([f"{prefix}self_attn.{part}_proj" for part in "qkv"], bias=True)
        self._out = weights.linear([f"{prefix}self_attn.out_proj"], bias=True)
        self._up = weights.linear([f"{prefix}mlp.fc1"], bias=True)
        self._down = weights.linear([f"{prefix}mlp.fc2"], bias=True)

    def __call__(self, hidden: Tensor, residual: Tensor | None, count: int, ops: Ops) -> tuple[Tensor, Tensor]:
        # 1. attention: (n * patches, width) -> three of (n, heads, patches, head dim) -> (n * patches, width)
        hidden, normed = ops.fused_add_layer_norm(hidden, residual, *self._attention_norm, self._qkv.input_format)
        qkv = self._qkv(normed, ops)
        queries, keys, values = qkv.view(count, len(hidden) // count, 3, self._heads, -1).transpose(1, 3).unbind(2)
        attended = ops.sdpa(queries, keys, values)
        residual = self._out(attended.transpose(1, 2).reshape(len(hidden), -1), ops)
        # 2. MLP
        hidden, normed = ops.fused_add_layer_norm(hidden, residual, *self._mlp_norm, self._up.input_format)
        return hidden, self._down(self._up.with_gelu(normed, ops, self._down.input_format), ops)


def position_buckets(count: int, side: int) -> Tensor:
    """Return the position of each of `count` patches along an edge, in the grid of `side` positions: int64 (count,).

    This is the rule of transformers 4.44, with which the published checkpoints were made, in float32: fractional
    coordinates are bucketized. Versions 5.0 to 5.20 compute them in the dtype of the pixels, which moves half of the
    patches in bfloat16.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32)
    fractions = torch.arange(0, 1 - 1e-6, 1 / count, dtype=torch.float32)
    return torch.bucketize(fractions, boundaries, right=True)


def normalize(pixels: Tensor, normalization: Normalization, dtype: torch.dtype) -> Tensor:
    """Turn uint8 (n, height, width, 3) into normalized (n, 3, height, width)."""
    mean, std = _statistics(normalization, pixels.device)
    scaled = (pixels.float() * normalization.scale - mean) / std
    return scaled.permute(0, 3, 1, 2).to(dtype).contiguous()


@functools.cache
def _statistics(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, where they stay: each copy would wait for the GPU."""
    return torch.tensor(normalization.mean, device=device), torch.tensor(normalization.std, device=device)


def _layer_norm(weights: Weights, name: str, eps: float) -> tuple[Tensor, Tensor, float]:
    return weights.tensor(f"{name}.weight"), weights.tensor(f"{name}.bias"), eps
