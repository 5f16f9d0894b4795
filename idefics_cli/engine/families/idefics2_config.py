"""The sizes of an Idefics2 model, and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.engine.families.base import DecoderConfig, PerceiverConfig, VisionConfig, decoder_config
from idefics_cli.engine.families.idefics2_images import MAX_CROPS
from idefics_cli.errors import ModelError

_PERCEIVER_MLP = 4  # times its width


@dataclass(frozen=True, slots=True)
class Idefics2Config:
    """Sizes of the vision tower, the perceiver and the text model."""

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
            patch = int(vision.get("patch_size", 32))
            activations = (
                ("vision hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
                ("perceiver hidden_act", perceiver.get("hidden_act", "silu"), "silu"),
            )
            return cls(
                VisionConfig(
                    hidden_size=int(vision.get("hidden_size", 768)),
                    intermediate_size=int(vision.get("intermediate_size", 3072)),
                    num_layers=int(vision.get("num_hidden_layers", 12)),
                    num_heads=int(vision.get("num_attention_heads", 12)),
                    patch_size=patch,
                    positions=int(vision.get("image_size", 224)) // patch,
                    eps=float(vision.get("layer_norm_eps", 1e-6)),
                ),
                PerceiverConfig(
                    num_latents=int(perceiver.get("resampler_n_latents", 64)),
                    num_layers=int(perceiver.get("resampler_depth", 3)),
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
    def max_crops(self) -> int:
        """Images that a page is read as, at most."""
        return MAX_CROPS

    @property
    def page_tokens(self) -> int:
        """Tokens of a page in a prompt, at most: those of each crop between fake tokens."""
        return MAX_CROPS * (self.perceiver.num_latents + 2)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by the name that the published checkpoints give it."""
        vision, perceiver, text = self.vision, self.perceiver, self.text
        shapes: dict[str, tuple[int, ...]] = {
            "model.text_model.embed_tokens.weight": (text.vocab_size, text.hidden_size),
            "model.text_model.norm.weight": (text.hidden_size,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
        tower = "model.vision_model."
        shapes[tower + "embeddings.patch_embedding.weight"] = (vision.hidden_size, 3, *(vision.patch_size,) * 2)
        shapes[tower + "embeddings.patch_embedding.bias"] = (vision.hidden_size,)
        shapes[tower + "embeddings.position_embedding.weight"] = (vision.positions**2, vision.hidden_size)
        for norm in ("weight", "bias"):
            shapes[f"{tower}post_layernorm.{norm}"] = (vision.hidden_size,)
        for layer in range(vision.num_layers):
            shapes |= _tower_layer(f"{tower}encoder.layers.{layer}.", vision)
        projection = "model.connector.modality_projection."
        shapes |= _gated_mlp(projection, vision.hidden_size, text.intermediate_size, text.hidden_size)
        resampler = "model.connector.perceiver_resampler."
        shapes[resampler + "latents"] = (perceiver.num_latents, text.hidden_size)
        shapes[resampler + "norm.weight"] = (text.hidden_size,)
        for layer in range(perceiver.num_layers):
            shapes |= _perceiver_layer(f"{resampler}layers.{layer}.", perceiver, text.hidden_size)
        for layer in range(text.num_layers):
            shapes |= _decoder_layer(f"model.text_model.layers.{layer}.", text)
        return shapes


def _tower_layer(prefix: str, config: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    products = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    for name, shape in {**products, "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.items():
        shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = shape, shape[:1]
    for norm in ("layer_norm1", "layer_norm2"):
        shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (width,)
    return shapes


def _gated_mlp(prefix: str, width: int, inner: int, out: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (out, inner),
    }


def _attention(prefix: str, width: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}self_attn.q_proj.weight": (heads * head_dim, width),
        f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.o_proj.weight": (width, heads * head_dim),
    }


def _perceiver_layer(prefix: str, config: PerceiverConfig, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= _gated_mlp(f"{prefix}mlp.", width, _PERCEIVER_MLP * width, width)
    for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes


def _decoder_layer(prefix: str, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    shapes = _attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= _gated_mlp(f"{prefix}mlp.", width, config.intermediate_size, width)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes
