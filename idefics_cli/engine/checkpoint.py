"""Finds and loads a checkpoint: a hub id, a folder, or the embedded tiny model; safetensors, never remote code."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, Idefics2ForConditionalGeneration, Idefics2Processor
from transformers.utils import logging as transformers_logging

from idefics_cli.config import TINY_MODEL, Device, Dtype, ImageGeometry, ModelSettings
from idefics_cli.errors import ModelError

_TINY_FOLDER = "tiny-idefics2"


@dataclass(frozen=True, slots=True)
class Normalization:
    """From uint8 to what the vision tower takes: (value * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's processor and settings; its weights come with `load_model`."""

    location: str
    settings: ModelSettings
    processor: Any
    config: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that its processor makes."""
        images = self.processor.image_processor
        return ImageGeometry(
            int(images.size["longest_edge"]),
            int(images.size["shortest_edge"]),
            int(getattr(images, "resample", None) or 2),
        )

    @property
    def normalization(self) -> Normalization:
        """How its processor normalizes pixels."""
        images = self.processor.image_processor
        return Normalization(float(images.rescale_factor), tuple(images.image_mean), tuple(images.image_std))


def samples_folder() -> Path:
    """Return the folder of the samples: inside the installed package, or beside it in a checkout.

    Raises:
        ModelError: the installation lacks it.

    """
    package = Path(str(importlib.resources.files("idefics_cli")))
    for folder in (package / "samples", package.parent / "samples"):
        if (folder / _TINY_FOLDER / "config.json").is_file():
            return folder
    raise ModelError("the embedded samples are missing from this installation; install idefics-cli again")


def open_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Read a checkpoint's configuration and processor, and choose device and number format.

    Raises:
        ModelError: no such checkpoint, not an Idefics2, or no such device.

    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    location = str(samples_folder() / _TINY_FOLDER) if settings.model == TINY_MODEL else settings.model
    device = _device(settings.device)
    try:
        config = AutoConfig.from_pretrained(location, revision=settings.revision, trust_remote_code=False)
        if config.model_type != "idefics2":
            raise ModelError(
                f"{settings.model}: a {config.model_type} checkpoint; idefics-cli runs idefics2 checkpoints"
            )
        processor = Idefics2Processor.from_pretrained(location, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, HFValidationError) as error:
        raise ModelError(_cannot_load(settings.model, error)) from error
    return Checkpoint(location, settings, processor, config, device, _dtype(settings.dtype, device))


def load_model(checkpoint: Checkpoint) -> Any:
    """Load the weights, in evaluation mode, on the checkpoint's device.

    Raises:
        ModelError: weights missing, damaged, or too large for the device.

    """
    name = checkpoint.settings.model
    try:
        model, report = Idefics2ForConditionalGeneration.from_pretrained(
            checkpoint.location,
            revision=checkpoint.settings.revision,
            dtype=checkpoint.dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(f"{name}: the checkpoint lacks {len(missing)} weights, {missing[0]} among them")
        return model.to(checkpoint.device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{name}: the weights do not fit the GPU's memory; try --device cpu") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load(name, error)) from error


def _device(wanted: Device) -> torch.device:
    available = torch.cuda.is_available()
    if wanted is Device.CUDA and not available:
        raise ModelError("--device cuda: torch sees no CUDA device here; try --device cpu")
    return torch.device("cuda" if available and wanted is not Device.CPU else "cpu")


def _dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    if wanted is Dtype.AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, wanted.value)
    return dtype


def _cannot_load(name: str, error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return (
        f"{name}: can't load this checkpoint: {words[0] if words else type(error).__name__} "
        f"(--model takes a hub id, a folder with safetensors, or {TINY_MODEL!r})"
    )
