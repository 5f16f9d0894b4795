"""What the machine is and can do, and how much work a question is: the measure of `bench`."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from idefics_cli.engine.clock import Lap
from idefics_cli.engine.schedule import head_dim

_SIDE = 8192
_REPEATS = 10


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def versions(packages: Sequence[str] = ("torch", "transformers")) -> dict[str, str]:
    """Return versions by package, Python's first; packages that are not there are left out.

    The packages that decide over speed are the default.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure TFLOP/s of large square matrix products of random numbers."""
    side = _SIDE if device.type == "cuda" else _SIDE // 8
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(_REPEATS):
        lap = Lap(device)
        torch.mm(left, right)
        times.append(lap.stop().ms)
    return 2 * side**3 / sorted(times)[_REPEATS // 2] / 1e9


def reset_peak(device: torch.device) -> None:
    """Begin to watch the peak of the GPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Return the peak of this process's GPU memory since `reset_peak`, in GB; None where memory is the host's."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def page_flops(config: Any, patches: list[int]) -> float:
    """Count the operations of vision tower and connector for crops of so many patches; a product counts twice."""
    vision, text, perceiver = config.vision_config, config.text_config, config.perceiver_config
    width, inner, wide = vision.hidden_size, vision.intermediate_size, text.hidden_size
    a_layer = 4 * width * width + 2 * width * inner
    projection = text.intermediate_size * (2 * width + wide)
    context = 2 * perceiver.resampler_depth * perceiver.num_key_value_heads * perceiver.resampler_head_dim * wide
    latent = perceiver.resampler_depth * (
        2 * perceiver.resampler_n_heads * perceiver.resampler_head_dim * wide + 12 * wide * wide
    )
    total = 0.0
    for count in patches:
        total += 2 * count * (vision.num_hidden_layers * a_layer + projection + context)
        total += 4 * count * count * width * vision.num_hidden_layers
        total += 2 * perceiver.resampler_n_latents * latent
    return total


def token_flops(config: Any) -> float:
    """Count the operations of the text model for one token; attention, a hundredth of it, aside."""
    text = config.text_config
    attention = text.hidden_size * head_dim(text) * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    return float(2 * text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size))
