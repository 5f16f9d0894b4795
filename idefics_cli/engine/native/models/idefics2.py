"""The vision side of Idefics2: a SigLIP encoder, and the connector that turns patches to latents."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics_cli.engine.families.base import Normalization, PerceiverConfig
from idefics_cli.engine.families.idefics2 import Idefics2Config
from idefics_cli.engine.native.models.siglip import VisionTower
from idefics_cli.engine.native.ops.base import InputFormat, Ops
from idefics_cli.engine.native.weights import Weights


class Idefics2Encoder:
    """Vision encoder and connector: from pixels to image features in the width of the text model."""

    def __init__(self, weights: Weights, config: Idefics2Config, normalization: Normalization) -> None:
        self._tower = VisionTower(weights, config.vision, normalization)
        self._connector = _Connector(weights, config.perceiver)

    @torch.inference_mode()
    def encode(self, crops: Tensor, ops: Ops, *, max_projected_patches: int) -> Tensor:
        """Encode uint8 crops (n, height, width, 3) to image features (n, latents, text width)."""
        return self._connector(self._tower(crops, ops), len(crops), ops, max_projected_patches)


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
