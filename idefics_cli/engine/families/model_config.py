"""The sizes of text models and vision encoders, read from config.json, and the shapes of their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from idefics_cli.engine.families.base import DecoderConfig, ModelConfig, RopeScaling, VisionConfig
from idefics_cli.errors import ModelError

_MOST_LAYERS = 1000  # of a stack: what a damaged file says must not become as many names of weights
_HARMLESS_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
MISTRAL: Mapping[str, Any] = {
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
"""What settings that a file leaves out are: those of transformers' MistralConfig."""
LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "sliding_window": None,
}
"""Those of its LlamaConfig; as many heads of keys as of queries where they are left out."""


def decoder_config(
    values: Mapping[str, Any], name: str, defaults: Mapping[str, Any] = MISTRAL
) -> tuple[DecoderConfig, tuple[str, ...]]:
    """Read a text model's settings; returns them, and what of them the native engine does not do.

    Args:
        values: `text_config` of config.json.
        name: of the checkpoint.
        defaults: `MISTRAL` or `LLAMA`.

    Raises:
        ModelError: a setting is missing or of the wrong kind.

    """
    values = {**defaults, **values}
    try:
        heads, hidden = int(values.get("num_attention_heads", 32)), int(values.get("hidden_size", 4096))
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
        window = values["sliding_window"] if defaults is MISTRAL else None
        config = DecoderConfig(
            vocab_size=int(values.get("vocab_size", 32000)),
            hidden_size=hidden,
            intermediate_size=int(values["intermediate_size"]),
            num_layers=layer_count(values, "num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=int(values["num_key_value_heads"] or defaults["num_key_value_heads"] or heads),
            head_dim=int(values.get("head_dim") or hidden // heads),
            eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
            max_positions=int(values["max_position_embeddings"]),
            sliding_window=int(window) if window else None,
            rope_scaling=_rope_scaling(rope) if _rope_type(rope) == "llama3" else None,
        )
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{name}: config.json: text_config: {error}") from error
    kind, activation = values["model_type"], values.get("hidden_act", "silu")
    gaps = []
    if kind != defaults["model_type"]:
        gaps.append(f"text model {kind}")
    if activation != "silu":
        gaps.append(f"text hidden_act {activation}")
    if _rope_type(rope) not in ("default", "llama3"):
        gaps.append(f"rope_type {_rope_type(rope)}")
    if values.get("attention_bias") or values.get("mlp_bias"):
        gaps.append("biases in the text model")
    if values.get("layer_types"):
        gaps.append("layer_types")
    return config, tuple(gaps)


def layer_count(values: Mapping[str, Any], key: str, default: int) -> int:
    """Return how many layers a stack has; raises ValueError for a number that no model has."""
    count = int(values.get(key, default))
    if not 1 <= count <= _MOST_LAYERS:
        raise ValueError(f"{key} is {count:,}: it takes 1 to {_MOST_LAYERS:,}")
    return count


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling:
    return RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )


def vision_config(values: Mapping[str, Any], **defaults: int) -> VisionConfig:
    """Read a vision encoder's settings.

    Args:
        values: `vision_config` of config.json.
        defaults: what settings that the file leaves out are.

    Raises:
        TypeError, ValueError, ZeroDivisionError: a setting is of the wrong kind.

    """
    values = {**defaults, **values}
    patch = int(values.get("patch_size", 32))
    return VisionConfig(
        hidden_size=int(values["hidden_size"]),
        intermediate_size=int(values.get("intermediate_size", 3072)),
        num_layers=layer_count(values, "num_hidden_layers", 12),
        num_heads=int(values["num_attention_heads"]),
        patch_size=patch,
        positions=int(values.get("image_size", 224)) // patch,
        eps=float(values.get("layer_norm_eps", 1e-6)),
    )


def model_shapes(vision: VisionConfig, text: DecoderConfig, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights, its connector's aside; `tied` is without a head."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.text_model.embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "model.text_model.norm.weight": (text.hidden_size,),
    }
    if not tied:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    tower = "model.vision_model."
    shapes[tower + "embeddings.patch_embedding.weight"] = (vision.hidden_size, 3, *(vision.patch_size,) * 2)
    shapes[tower + "embeddings.patch_embedding.bias"] = (vision.hidden_size,)
    shapes[tower + "embeddings.position_embedding.weight"] = (vision.positions**2, vision.hidden_size)
    for norm in ("weight", "bias"):
        shapes[f"{tower}post_layernorm.{norm}"] = (vision.hidden_size,)
    for layer in range(vision.num_layers):
        shapes |= _tower_layer(f"{tower}encoder.layers.{layer}.", vision)
    for layer in range(text.num_layers):
        shapes |= _decoder_layer(f"model.text_model.layers.{layer}.", text)
    return shapes


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Check the names and shapes of a checkpoint's weights.

    Raises:
        ModelError: weights are missing or of another shape, or there are some that the settings have no place for.

    """
    wanted, given = config.weight_shapes(), dict(shapes)
    if config.tie_word_embeddings:
        given.pop("lm_head.weight", None)
    extra = sorted(one for one in given.keys() - wanted.keys() if not _HARMLESS_WEIGHTS.fullmatch(one))
    other = sorted(one for one in wanted.keys() & given.keys() if wanted[one] != given[one])
    for words, found in (
        ("lacks", sorted(wanted.keys() - given.keys())),
        ("has no place in its config.json for", extra),
        ("has in its config.json another shape for", other),
    ):
        if found:
            raise ModelError(f"{name}: the checkpoint {words} {len(found)} weights, {found[0]} among them")


def _tower_layer(prefix: str, config: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    products = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    for name, shape in {**products, "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.items():
        shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = shape, shape[:1]
    for norm in ("layer_norm1", "layer_norm2"):
        shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (width,)
    return shapes


def gated_mlp(prefix: str, width: int, inner: int, out: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a gated MLP of so many inputs, hidden numbers and outputs."""
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (out, inner),
    }


def attention(prefix: str, width: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an attention's four products."""
    return {
        f"{prefix}self_attn.q_proj.weight": (heads * head_dim, width),
        f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.o_proj.weight": (width, heads * head_dim),
    }


def _decoder_layer(prefix: str, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    shapes = attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= gated_mlp(f"{prefix}mlp.", width, config.intermediate_size, width)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes
