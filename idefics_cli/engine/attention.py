"""What computes attention in the transformers backend: checked before weights are loaded, without torch."""

from __future__ import annotations

import importlib.util

from idefics_cli.config import Attention, ModelSettings
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.errors import ModelError, UsageError


def check_attention(settings: ModelSettings, choice: DeviceChoice, *, is_native: bool) -> None:
    """Refuse an implementation of attention that would not be taken, or can't run here.

    Asking for one never sends a checkpoint to transformers: the native engine has attention of its own.

    Args:
        settings: of the model.
        choice: device and dtype.
        is_native: whether the native engine runs the checkpoint.

    Raises:
        ModelError: it is not installed.
        UsageError: it is not for this engine, device or dtype.

    """
    asked = settings.attention
    if asked is Attention.AUTO:
        return
    if is_native:
        raise UsageError(
            f"--attention {asked} is for what transformers runs; the native engine runs {settings.model}, with "
            "attention of its own: leave --attention out"
        )
    if asked is not Attention.FLASH_ATTENTION_2:
        return
    # Without the package, transformers would fetch kernels, which are code, from the hub.
    if importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            "--attention flash_attention_2: flash-attn is not installed: pip install flash-attn --no-build-isolation "
            "(it needs a CUDA toolkit), or use --attention sdpa"
        )
    if choice.device != "cuda":
        raise UsageError(f"--attention flash_attention_2 needs a CUDA GPU, not {choice.name}; use --attention sdpa")
    if choice.dtype == "float32":
        raise UsageError("--attention flash_attention_2 takes --dtype bfloat16 or float16, not float32")


def implementation(settings: ModelSettings) -> str | None:
    """Return the implementation by transformers' name; None leaves it to transformers: torch's own where it can."""
    return None if settings.attention is Attention.AUTO else str(settings.attention)
