"""The eyes of Idefics2: a SigLIP tower at native aspect ratio, and the connector that turns patches to latents.

Crops of one shape go through together and without padding, so that no mask is needed. Activations are
(crops * patches, width).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.families.base import Normalization, PerceiverConfig, VisionConfig
from idefics_cli.engine.families.idefics2 import Idefics2Config
from idefics_cli.engine.native.ops.base import InputFormat, Ops
from idefics_cli.engine.native.ops.linear import Linear
from idefics_cli.engine.native.weights import Weights

_ALIGNMENT = 8  # columns: 16 bytes in bfloat16, what fast matrix products ask for
_CACHED_SHAPES = 64


class VisionEncoder:
    """Vision tower and connector: from pixels to image features in the width of the text model."""

    def __init__(self, weights: Weights, config: Idefics2Config, normalization: Normalization) -> None:
        self._tower = _VisionTower(weights, config.vision, normalization)
        self._connector = _Connector(weights, config.perceiver)

    @torch.inference_mode()
    def encode(self, crops: Tensor, ops: Ops, *, max_projected_patches: int) -> Tensor:
        """Encode uint8 crops (n, height, width, 3) to image features (n, latents, text width).

        Args:
            crops: on the device; pixels beyond the last whole patch are dropped.
            ops: torch or Triton.
            max_projected_patches: patches whose widest activations may exist together.

        """
        return self._connector(self._tower(crops, ops), len(crops), ops, max_projected_patches)


class _VisionTower:
    def __init__(self, weights: Weights, config: VisionConfig, normalization: Normalization) -> None:
        prefix = "model.vision_model."
        self._config, self._normalization = config, normalization
        patch = weights.tensor(f"{prefix}embeddings.patch_embedding.weight").flatten(1)
        self._patch_embedding = Linear(functional.pad(patch, (0, -patch.shape[1] % _ALIGNMENT)))
        self._patch_bias = weights.tensor(f"{prefix}embeddings.patch_embedding.bias")
        self._position_embedding = weights.tensor(f"{prefix}embeddings.position_embedding.weight")
        self._layers = weights.layers(
            lambda index: _TowerLayer(weights, f"{prefix}encoder.layers.{index}.", config), config.num_layers
        )
        self._norm = _layer_norm(weights, f"{prefix}post_layernorm", config.eps)
        self._offsets = functools.lru_cache(_CACHED_SHAPES)(self._embedding_offsets)

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

    def _embedding_offsets(self, rows: int, columns: int) -> Tensor:
        """Return position embeddings and the patch embedding's bias, (rows * columns, width)."""
        side = self._config.positions
        index = position_buckets(rows, side)[:, None] * side + position_buckets(columns, side)
        return self._position_embedding[index.flatten().to(self._position_embedding.device)] + self._patch_bias


class _TowerLayer:
    """Attention and MLP of the vision tower; the residual that it returns is added by the next norm."""

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


class _Connector:
    """The projection of every patch to the text width, and the perceiver that resamples them to latents."""

    def __init__(self, weights: Weights, config: PerceiverConfig) -> None:
        projection, resampler = "model.connector.modality_projection.", "model.connector.perceiver_resampler."
        layers = [f"{resampler}layers.{index}." for index in range(config.num_layers)]
        self._config = config
        # What the gate lets through, and what it becomes, outgrow float16 until the norm behind them.
        self._wide, self._dtype = weights.wide_dtype, weights.dtype
        self._gate_up = weights.linear([f"{projection}gate_proj", f"{projection}up_proj"], dtype=self._wide)
        self._down = weights.linear([f"{projection}down_proj"], dtype=self._wide)
        # The layers norm one context with weights of their own: these go into the products, which become one.
        self._context = weights.linear_of(
            torch.cat(
                [
                    weights.tensor(f"{layer}self_attn.{part}_proj.weight")
                    * weights.tensor(f"{layer}input_context_norm.weight")
                    for layer in layers
                    for part in "kv"
                ]
            )
        )
        self._layers = [_PerceiverLayer(weights, layer, config) for layer in layers]
        self._latents = weights.tensor(f"{resampler}latents")
        self._norm = weights.tensor(f"{resampler}norm.weight")
        self._ones = torch.ones_like(self._norm, dtype=self._wide)

    def __call__(self, patches: Tensor, count: int, ops: Ops, max_projected_patches: int) -> Tensor:
        """Turn normed patches (n * patches, width) into (n, latents, text width)."""
        config, parts = self._config, []
        # 1. projection, normed without weights: (n * patches, text width) -> keys and values of every layer
        for part in patches.chunk(-(-len(patches) // max_projected_patches)):
            active = ops.silu_and_mul(self._gate_up(part.to(self._wide), ops), self._down.input_format)
            projected = self._down(active, ops)
            _, normed = ops.fused_add_rms_norm(projected, None, self._ones, config.eps, self._context.input_format)
            parts.append(self._context(normed.to(self._dtype) if isinstance(normed, Tensor) else normed, ops))
        # 2. (layers, keys and values, n, patches, kv heads, head dim)
        contexts = torch.cat(parts).view(count, -1, len(self._layers), 2, config.num_kv_heads, config.head_dim)
        contexts = contexts.permute(2, 3, 0, 1, 4, 5)
        # 3. latents: (n * latents, text width)
        hidden, residual = self._latents.repeat(count, 1), None
        for layer, context in zip(self._layers, contexts, strict=True):
            hidden, residual = layer(hidden, residual, context, ops)
        _, normed = ops.fused_add_rms_norm(hidden, residual, self._norm, config.eps, InputFormat.PLAIN)
        assert isinstance(normed, Tensor)
        return normed.view(count, len(self._latents), -1)


class _PerceiverLayer:
    """Latents attend to the context and to themselves."""

    def __init__(self, weights: Weights, prefix: str, config: PerceiverConfig) -> None:
        self._attention_norm = (weights.tensor(f"{prefix}input_latents_norm.weight"), config.eps)
        self._mlp_norm = (weights.tensor(f"{prefix}post_attention_layernorm.weight"), config.eps)
        self._query = weights.linear([f"{prefix}self_attn.q_proj"])
        self._key_value = weights.linear([f"{prefix}self_attn.k_proj", f"{prefix}self_attn.v_proj"])
        self._out = weights.linear([f"{prefix}self_attn.o_proj"])
        self._gate_up = weights.linear([f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"])
        self._down = weights.linear([f"{prefix}mlp.down_proj"])

    def __call__(self, hidden: Tensor, residual: Tensor | None, context: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Take the keys and values of the context, (2, n, patches, kv heads, head dim)."""
        _, count, _, kv_heads, dim = context.shape
        # 1. keys and values of context and latents, (n, kv heads, patches + latents, head dim)
        hidden, normed = ops.fused_add_rms_norm(hidden, residual, *self._attention_norm, self._query.input_format)
        latents = self._key_value(normed, ops).view(count, -1, 2, kv_heads, dim).permute(2, 0, 1, 3, 4)
        keys, values = torch.cat((context, latents), 2).transpose(2, 3)
        # 2. heads that share keys stand one after another as queries: (n, kv heads, group * latents, head dim)
        queries = self._query(normed, ops).view(count, latents.shape[2], kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
        group = queries.shape[2]
        attended = ops.sdpa(queries.flatten(2, 3), keys, values).view(count, kv_heads, group, -1, dim)
        residual = self._out(attended.permute(0, 3, 1, 2, 4).reshape(len(hidden), -1), ops)
        # 3. MLP
        hidden, normed = ops.fused_add_rms_norm(hidden, residual, *self._mlp_norm, self._gate_up.input_format)
        return hidden, self._down(ops.silu_and_mul(self._gate_up(normed, ops), self._down.input_format), ops)


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
