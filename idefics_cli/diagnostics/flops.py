"""How much work a question is: floating-point operations, counted from the shapes; a multiply-add counts twice."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.engine.families.idefics2 import Idefics2Config


def page_flops(config: Idefics2Config, patches: Iterable[int]) -> float:
    """Count the operations of vision tower and connector for crops of so many patches."""
    vision, text, perceiver = config.vision, config.text, config.perceiver
    width, hidden = vision.hidden_size, text.hidden_size
    tower_layer = 4 * width * width + 2 * width * vision.intermediate_size
    projection = text.intermediate_size * (2 * width + hidden)
    context = 2 * perceiver.num_layers * perceiver.num_kv_heads * perceiver.head_dim * hidden
    latent = perceiver.num_layers * (2 * perceiver.num_heads * perceiver.head_dim * hidden + 12 * hidden * hidden)
    total = 0.0
    for count in patches:
        total += 2 * count * (vision.num_layers * tower_layer + projection + context)
        total += 4 * count * count * width * vision.num_layers
        total += 2 * perceiver.num_latents * latent
    return total


def token_flops(config: Idefics2Config) -> float:
    """Count the operations of the text model for one token, without attention, which is a hundredth of it."""
    text = config.text
    attention = text.hidden_size * text.head_dim * (2 * text.num_heads + 2 * text.num_kv_heads)
    return float(2 * text.num_layers * (attention + 3 * text.hidden_size * text.intermediate_size))
