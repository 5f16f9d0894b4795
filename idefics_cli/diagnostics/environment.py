"""What is installed here, and what `run` would choose: the facts of `doctor`."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from idefics_cli.config import TINY_MODEL, Kernels, ModelSettings
from idefics_cli.engine import machine, schedule
from idefics_cli.engine.checkpoint import Checkpoint, free_memory, weight_bytes
from idefics_cli.engine.operations import has_kernels

_FLASH_ATTENTION = "flash-attn-4"  # older packages share its module, not its kernels
_PACKAGES = (
    "idefics-cli",
    "torch",
    "transformers",
    "safetensors",
    "pillow",
    "pypdfium2",
    "pdf2image",
    "triton",
    _FLASH_ATTENTION,
)


def installed() -> dict[str, str]:
    """Return versions by package; those that are not there are left out."""
    return machine.versions(_PACKAGES)


def rasterizers() -> dict[str, str]:
    """Return where each rasterizer is."""
    poppler = shutil.which("pdftoppm")
    return {
        "pdfium": f"pypdfium2 {version('pypdfium2')}",
        "poppler": poppler or "not installed: PDFs that PDFium can't render fail",
    }


def gpus() -> list[str]:
    """Return each GPU's name and memory."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(f"{torch.cuda.get_device_name(index)}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return found


def weights_at_hand(settings: ModelSettings) -> str | None:
    """Return where a model's weights are on this machine; None where they would have to be downloaded."""
    if settings.model == TINY_MODEL:
        return "embedded"
    if Path(settings.model).is_dir():
        return settings.model
    for name in ("model.safetensors.index.json", "model.safetensors"):
        found = try_to_load_from_cache(settings.model, name, revision=settings.revision)
        if isinstance(found, str):
            return str(Path(found).parent)
    return None


def choices(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a run would choose, each with its reason."""
    settings, device, config = checkpoint.settings, checkpoint.device, checkpoint.config
    kernels = settings.kernels is not Kernels.OFF and has_kernels(device, schedule.head_dim(config.text_config))
    flash = _FLASH_ATTENTION in installed()
    free, item = free_memory(device, settings.gpu_memory), torch.finfo(checkpoint.dtype).bits // 8
    weights = weight_bytes(checkpoint) // (2 if settings.quantize != "none" else 1)
    plan = schedule.plan(
        None if free is None else free - weights,
        schedule.sizes(config, item),
        rows=settings.batch_size,
        crop_tokens=config.perceiver_config.resampler_n_latents,
        max_new_tokens=settings.max_new_tokens,
    )
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    attention = "FlashAttention 4" if flash else "cuDNN (FlashAttention 4 is not installed: extra fa4)"
    return {
        "device": f"{device}: {machine.device_name(device)}",
        "number format": f"{dtype}, weights {weights / 1e9:.1f} GB",
        "attention": attention if kernels else "torch",
        "kernels": "Triton, once there is work that pays for compiling them" if kernels else "none on this device",
        "batch size": f"{plan.rows}, as asked for"
        if settings.batch_size
        else f"{plan.rows}, of {(free - weights) / 1e9:.1f} GB beside the weights"
        if free is not None
        else f"{plan.rows}, on a processor",
    }
