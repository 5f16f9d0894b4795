"""Configurations of published checkpoints, whose shapes can be measured with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.config import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class PublishedShape:
    """The sizes of a published checkpoint."""

    config: Mapping[str, Any]
    """config.json, as far as shapes need it."""
    processor: Mapping[str, Any]
    """What of the image processor's settings says how large images are, and how many tokens."""


IDEFICS2_8B: dict[str, Any] = {
    "model_type": "idefics2",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 32003,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 980,
        "patch_size": 14,
    },
    "perceiver_config": {
        "hidden_size": 4096,
        "resampler_n_latents": 64,
        "resampler_depth": 3,
        "resampler_n_heads": 16,
        "resampler_head_dim": 96,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
    },
}
"""config.json of HuggingFaceM4/idefics2-8b, defaults written out."""
IDEFICS2_8B_EDGES = {"longest_edge": 980, "shortest_edge": 378}
"""`size` of its image processor."""

_SIGLIP_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
_SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}


def _tiled(kind: str, vision: Mapping[str, Any], scale: int, tile: int, text: Mapping[str, Any]) -> PublishedShape:
    """Return the shape of an Idefics3 or SmolVLM of pages of 4 x 4 tiles of so many pixels; its head is not tied."""
    config = {
        "model_type": kind,
        "scale_factor": scale,
        "tie_word_embeddings": False,
        "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "pad_token_id": 0, **text},
        "vision_config": {"image_size": tile, **vision},
    }
    processor = {
        "size": {"longest_edge": 4 * tile},
        "max_image_size": {"longest_edge": tile},
        "image_seq_len": (tile // vision["patch_size"] // scale) ** 2,
        "resample": 1,
    }
    return PublishedShape(config, processor)


def _llama(
    hidden: int, intermediate: int, layers: int, heads: tuple[int, int], vocabulary: int, **others: Any
) -> dict[str, Any]:
    """Return the settings of a Llama; `heads` are those of queries, and of keys and values."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        **others,
    }


_256M = _llama(576, 1536, 30, (9, 3), 49280)
_500M = _llama(960, 2560, 32, (15, 5), 49280)
_2B = _llama(2048, 8192, 24, (32, 32), 49280, rope_theta=130000.0)
_LLAMA_3_1 = _llama(
    4096, 14336, 32, (32, 8), 128259, rope_theta=500000.0, max_position_embeddings=131072,
    rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)  # fmt: skip
PUBLISHED: Mapping[str, PublishedShape] = {
    DEFAULT_MODEL: PublishedShape(IDEFICS2_8B, {"size": IDEFICS2_8B_EDGES}),
    "HuggingFaceM4/Idefics3-8B-Llama3": _tiled("idefics3", _SIGLIP_SO400M, 2, 364, _LLAMA_3_1),
    "HuggingFaceTB/SmolVLM-256M-Instruct": _tiled("idefics3", _SIGLIP_BASE, 4, 512, _256M),
    "HuggingFaceTB/SmolVLM-500M-Instruct": _tiled("idefics3", _SIGLIP_BASE, 4, 512, _500M),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": _tiled("smolvlm", _SIGLIP_BASE, 4, 512, _256M),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _tiled("smolvlm", _SIGLIP_BASE, 4, 512, _500M),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _tiled("smolvlm", _SIGLIP_SO400M, 3, 384, _2B),
}
"""By hub id. Vocabularies and rotary bases of SmolVLM may differ a little: no speed depends on them."""
