"""Configurations of published checkpoints, whose shapes can be measured with random weights."""

from __future__ import annotations

from typing import Any

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
