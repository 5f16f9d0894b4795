"""The sizes of an Idefics2 model, and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.engine.families.base import DecoderConfig, PerceiverConfig, VisionConfig
from idefics_cli.engine.families.idefics2_images import MAX_CROPS
from idefics_cli.engine.families.model_config import (
    attention,
    decoder_config,
    gated_mlp,
    layer_count,
    model_shapes,
    vision_config,
)
from idefics_cli.errors import ModelError

_PERCEIVER_MLP = 4  # times its width


@dataclass(frozen=True, slots=True)
class Idefics2Config:
    """Sizes of the vision encoder, the perceiver and the text model."""

    vision: VisionConfig
    perceiver: PerceiverConfig
    text: DecoderConfig
    image_token_id: int
    tie_word_embeddings: bool
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Idefics2Config:
        """Read config.json; what it leaves out has the defaults of transformers' Idefics2 configurations.

        Raises:
            ModelError: a setting is of the wrong kind.

        """
        text, gaps = decoder_config(values.get("text_config") or {}, name)
        try:
            vision, perceiver = values.get("vision_config") or {}, values.get("perceiver_config") or {}
            activations = (
                ("vision hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
                ("perceiver hidden_act", perceiver.get("hidden_act", "silu"), "silu"),
            )
            return cls(
                vision_config(vision, hidden_size=768, num_attention_heads=12),
                PerceiverConfig(
                    num_latents=int(perceiver.get("resampler_n_latents", 64)),
                    num_layers=layer_count(perceiver, "resampler_depth", 3),
                    num_heads=int(perceiver.get("resampler_n_heads", 16)),
                    num_kv_heads=int(perceiver.get("num_key_value_heads", 4)),
                    head_dim=int(perceiver.get("resampler_head_dim", 96)),
                    # transformers takes the text model's where the widths differ, as when they are left out
                    eps=float(perceiver.get("rms_norm_eps", 1e-6))
                    if int(perceiver.get("hidden_size", 4096)) == text.hidden_size
                    else text.eps,
                ),
                text,
                image_token_id=int(values.get("image_token_id", 32001)),
                tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
                gaps=gaps + tuple(f"{what} {given}" for what, given, native in activations if given != native),
            )
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise ModelError(f"{name}: config.json: {error}") from error

    @property
    def image_seq_len(self) -> int:
        """Image tokens of a crop."""
        return self.perceiver.num_latents

    @property
    def max_crops(self) -> int:
        """Images that a page is read as, at most."""
        return MAX_CROPS

    @property
    def page_tokens(self) -> int:
        """Tokens of a page in a prompt, at most: those of each crop between fake tokens."""
        return MAX_CROPS * (self.perceiver.num_latents + 2)

    @property
    def context_width(self) -> int:
        """Numbers that the connector keeps of a patch: keys and values of every layer of the perceiver."""
        return 2 * self.perceiver.num_layers * self.perceiver.num_kv_heads * self.perceiver.head_dim

    @property
    def projection_width(self) -> int:
        """Numbers of a patch that exist at once in the gated MLP of the projection."""
        return 3 * self.text.intermediate_size + 2 * self.text.hidden_size

    def connector_products(self, patches: int) -> int:
        """Return the multiplications of the connector for a crop of so many patches."""
        perceiver, hidden = self.perceiver, self.text.hidden_size
        projection = self.text.intermediate_size * (2 * self.vision.hidden_size + hidden)
        queries = 2 * perceiver.num_heads * perceiver.head_dim * hidden
        latent = perceiver.num_layers * (queries + 3 * _PERCEIVER_MLP * hidden * hidden)
        return patches * (projection + self.context_width * hidden) + perceiver.num_latents * latent

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by the name that the published checkpoints give it."""
        vision, perceiver, text = self.vision, self.perceiver, self.text
        shapes = model_shapes(vision, text, tied=self.tie_word_embeddings)
        projection = "model.connector.modality_projection."
        shapes |= gated_mlp(projection, vision.hidden_size, text.intermediate_size, text.hidden_size)
        resampler = "model.connector.perceiver_resampler."
        shapes[resampler + "latents"] = (perceiver.num_latents, text.hidden_size)
        shapes[resampler + "norm.weight"] = (text.hidden_size,)
        for layer in range(perceiver.num_layers):
            shapes |= _perceiver_layer(f"{resampler}layers.{layer}.", perceiver, text.hidden_size)
        return shapes


def _perceiver_layer(prefix: str, config: PerceiverConfig, width: int) -> dict[str, tuple[int, ...]]:
    shapes = attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= gated_mlp(f"{prefix}mlp.", width, _PERCEIVER_MLP * width, width)
    for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes
