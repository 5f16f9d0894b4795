"""How much work a question is: floating-point operations, counted from the shapes; a multiply-add counts twice."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.engine.families.base import ModelConfig


def page_flops(config: ModelConfig, patches: Iterable[int]) -> float:
    """Count the operations of vision encoder and connector for crops of so many patches."""
    vision, width = config.vision, config.vision.hidden_size
    tower_layer = 4 * width * width + 2 * width * vision.intermediate_size
    total = 0.0
    for count in patches:
        total += 2 * (count * vision.num_layers * tower_layer + config.connector_products(count))
        total += 4 * count * count * width * vision.num_layers
    return total


def token_flops(config: ModelConfig) -> float:
    """Count the operations of the text model for one token, without attention, which is a hundredth of it."""
    text = config.text
    attention = text.hidden_size * text.head_dim * (2 * text.num_heads + 2 * text.num_kv_heads)
    return float(2 * text.num_layers * (attention + 3 * text.hidden_size * text.intermediate_size))
