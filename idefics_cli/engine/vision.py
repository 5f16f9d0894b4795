"""Encodes crops: pixels, vision tower, connector.

Crops of one shape go through together and without padding: no mask is needed, and an encoding does not depend on its
company. Activations are (crops * patches, width).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.engine.checkpoint import Normalization
from idefics_cli.engine.linear import Linear
from idefics_cli.engine.operations import Operations

_ALIGNMENT = 8  # columns: 16 bytes in bfloat16, what fast matrix products ask for
_CACHED_SHAPES = 64


class Vision:
    """The vision tower and connector of a model, which shares its weights."""

    def __init__(self, model: Any, normalization: Normalization, device: torch.device, *, fp8: bool = False) -> None:
        tower = model.model.vision_model
        self._normalization = normalization
        self._embeddings = tower.embeddings.to(device)
        weight = self._embeddings.patch_embedding.weight.data.flatten(1)
        self._patch = int(model.config.vision_config.patch_size)
        self._embedding = Linear(functional.pad(weight, (0, -weight.shape[1] % _ALIGNMENT)))
        self._layers = [_TowerLayer(layer.to(device), fp8) for layer in tower.encoder.layers]
        self._last_norm = tower.post_layernorm.to(device)
        self._connector = _Connector(model.model.connector.to(device), fp8)
        self._offset = functools.lru_cache(_CACHED_SHAPES)(self._embedding_offset)

    @torch.inference_mode()
    def encode(self, crops: Tensor, operations: Operations, *, projected_at_once: int) -> Tensor:
        """Encode uint8 crops (n, height, width, 3) to (n, latents, text width).

        Args:
            crops: on the device; pixels beyond the last whole patch are dropped.
            operations: plain or kernels.
            projected_at_once: patches whose widest activations may exist together.

        """
        count, height, width = len(crops), crops.shape[1] // self._patch, crops.shape[2] // self._patch
        hidden = self._embedding(self._patches(crops, height, width), operations)
        hidden = (hidden.view(count, height * width, -1) + self._offset(height, width)).flatten(0, 1)
        change = None
        for layer in self._layers:
            hidden, change = layer(hidden, change, count, operations)
        norm = self._last_norm
        _, normed = operations.add_norm(hidden, change, norm.weight, norm.bias, norm.eps)
        del hidden, change
        assert isinstance(normed, Tensor)
        return self._connector(normed, count, operations, projected_at_once)

    def _patches(self, crops: Tensor, height: int, width: int) -> Tensor:
        """Cut crops into normalized patches, (n * height * width, 3 * patch * patch and padding)."""
        size = self._patch
        pixels = normalize(crops[:, : height * size, : width * size], self._normalization, self._embedding.weight.dtype)
        patches = pixels.view(len(crops), 3, height, size, width, size).permute(0, 2, 4, 1, 3, 5)
        padded = pixels.new_zeros(len(crops) * height * width, self._embedding.weight.shape[1])
        padded[:, : 3 * size * size] = patches.reshape(len(padded), -1)
        return padded

    def _embedding_offset(self, height: int, width: int) -> Tensor:
        """Position embeddings and the patch embedding's bias, (height * width, width).

        The installed model's own embedding makes them, from pixels of zero: how positions are rounded to the 70 x 70
        grid differs between versions of transformers.
        """
        weight = self._embeddings.patch_embedding.weight
        pixels = weight.new_zeros(1, 3, height * self._patch, width * self._patch)
        mask = torch.ones(1, height, width, dtype=torch.bool, device=weight.device)
        offset: Tensor = self._embeddings(pixel_values=pixels, patch_attention_mask=mask)
        return offset


class _TowerLayer:
    """Attention and MLP of the vision tower; each returns its change, which the next norm adds."""

    def __init__(self, layer: Any, fp8: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._heads, self._fp8 = int(attention.num_heads), fp8
        self._norms = layer.layer_norm1, layer.layer_norm2
        self._qkv = Linear.of(attention.q_proj, attention.k_proj, attention.v_proj, fp8=fp8)
        self._out = Linear.of(attention.out_proj, fp8=fp8)
        self._up, self._down = Linear.of(mlp.fc1, fp8=fp8), Linear.of(mlp.fc2, fp8=fp8)

    def __call__(
        self, hidden: Tensor, change: Tensor | None, count: int, operations: Operations
    ) -> tuple[Tensor, Tensor]:
        before, after = self._norms
        hidden, normed = operations.add_norm(hidden, change, before.weight, before.bias, before.eps, fp8=self._fp8)
        qkv = self._qkv(normed, operations)
        queries, keys, values = qkv.view(count, len(hidden) // count, 3, self._heads, -1).transpose(1, 3).unbind(2)
        attended = operations.attend_all(queries, keys, values)
        change = self._out(attended.transpose(1, 2).reshape(len(hidden), -1), operations)
        hidden, normed = operations.add_norm(hidden, change, after.weight, after.bias, after.eps, fp8=self._fp8)
        return hidden, self._down(self._up.with_gelu(normed, operations), operations)


class _Connector:
    """The projection of every patch to the text width, and the perceiver that resamples them to latents."""

    def __init__(self, connector: Any, fp8: bool) -> None:
        projection, resampler = connector.modality_projection, connector.perceiver_resampler
        attentions = [layer.self_attn for layer in resampler.layers]
        # The layers norm one context with weights of their own: these go into the products, which become one.
        context = torch.cat(
            [
                product.weight.data * layer.input_context_norm.weight.data
                for layer in resampler.layers
                for product in (layer.self_attn.k_proj, layer.self_attn.v_proj)
            ]
        )
        self._gate_up = Linear.of(projection.gate_proj, projection.up_proj, fp8=fp8)
        self._down = Linear.of(projection.down_proj, fp8=fp8)
        self._context = Linear(context, fp8=fp8)
        self._layers = [_PerceiverLayer(layer, fp8) for layer in resampler.layers]
        self._latents, self._norm, self._fp8 = resampler.latents.data, resampler.norm, fp8
        self._ones = torch.ones_like(self._norm.weight.data)
        self._kv_heads, self._dim = int(attentions[0].num_key_value_heads), int(attentions[0].head_dim)

    def __call__(self, patches: Tensor, count: int, operations: Operations, projected_at_once: int) -> Tensor:
        """Turn normed patches (count * patches, width) into (count, latents, text width)."""
        parts = []
        for part in torch.split(patches, projected_at_once):
            active = operations.gated_silu(self._gate_up(part, operations), fp8=self._fp8)
            projected = self._down(active, operations)
            _, normed = operations.add_norm(
                projected, None, self._ones, None, self._norm.variance_epsilon, fp8=self._fp8
            )
            parts.append(self._context(normed, operations))
        # (layers, keys and values, count, patches, kv heads, dim)
        contexts = torch.cat(parts).view(count, -1, len(self._layers), 2, self._kv_heads, self._dim)
        contexts = contexts.permute(2, 3, 0, 1, 4, 5)
        latents = self._latents.repeat(count, 1)
        change = None
        for layer, context in zip(self._layers, contexts, strict=True):
            latents, change = layer(latents, change, context, operations)
        _, normed = operations.add_norm(latents, change, self._norm.weight, None, self._norm.variance_epsilon)
        assert isinstance(normed, Tensor)
        return normed.view(count, len(self._latents), -1)


class _PerceiverLayer:
    """Latents attend to the context and to themselves."""

    def __init__(self, layer: Any, fp8: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms, self._fp8 = (layer.input_latents_norm, layer.post_attention_layernorm), fp8
        self._query = Linear.of(attention.q_proj, fp8=fp8)
        self._key_value = Linear.of(attention.k_proj, attention.v_proj, fp8=fp8)
        self._out = Linear.of(attention.o_proj, fp8=fp8)
        self._gate_up, self._down = Linear.of(mlp.gate_proj, mlp.up_proj, fp8=fp8), Linear.of(mlp.down_proj, fp8=fp8)

    def __call__(
        self, latents: Tensor, change: Tensor | None, context: Tensor, operations: Operations
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of the context, (2, count, patches, kv heads, dim)."""
        _, count, _, kv_heads, dim = context.shape
        before, after = self._norms
        latents, normed = operations.add_norm(
            latents, change, before.weight, None, before.variance_epsilon, fp8=self._fp8
        )
        own = self._key_value(normed, operations).view(count, -1, 2, kv_heads, dim).permute(2, 0, 1, 3, 4)
        keys, values = torch.cat((context, own), 2).transpose(2, 3)
        # Heads that share keys stand one after another as queries: (count, kv heads, group * latents, dim).
        queries = self._query(normed, operations).view(count, own.shape[2], kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
        group = queries.shape[2]
        attended = operations.attend_all(queries.flatten(2, 3), keys, values).view(count, kv_heads, group, -1, dim)
        change = self._out(attended.permute(0, 3, 1, 2, 4).reshape(len(latents), -1), operations)
        latents, normed = operations.add_norm(
            latents, change, after.weight, None, after.variance_epsilon, fp8=self._fp8
        )
        active = operations.gated_silu(self._gate_up(normed, operations), fp8=self._fp8)
        return latents, self._down(active, operations)


def normalize(pixels: Tensor, normalization: Normalization, dtype: torch.dtype) -> Tensor:
    """Turn uint8 (n, height, width, 3) into normalized (n, 3, height, width)."""
    mean, std = _statistics(normalization, pixels.device)
    scaled = (pixels.float() * normalization.scale - mean) / std
    return scaled.permute(0, 3, 1, 2).to(dtype).contiguous()


@functools.cache
def _statistics(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, where they stay: each copy would wait for the GPU."""
    return torch.tensor(normalization.mean, device=device), torch.tensor(normalization.std, device=device)
