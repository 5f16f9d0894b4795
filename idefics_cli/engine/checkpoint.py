"""Finds and loads a checkpoint: a hub id, a folder, or the embedded tiny model; safetensors, never remote code."""

from __future__ import annotations

import dataclasses
import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, Idefics2Config, Idefics2ForConditionalGeneration, Idefics2Processor
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from idefics_cli.config import TINY_MODEL, Device, Dtype, ImageGeometry, ModelSettings, Quantize
from idefics_cli.errors import ModelError

_TINY_FOLDER = "tiny-idefics2"
_LOADING = 1.1  # times the weights: what loading them takes at its peak


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
    device = _device(settings.device, settings.gpu_memory)
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


def open_full_shape(settings: ModelSettings) -> Checkpoint:
    """Return a checkpoint of the published 8B model's shape, with the tiny model's tokenizer: for measurements.

    The numbers are those of the configuration of HuggingFaceM4/idefics2-8b; `random_model` makes weights for it.
    """
    tiny = open_checkpoint(dataclasses.replace(settings, model=TINY_MODEL))
    config = Idefics2Config(
        image_token_id=tiny.config.image_token_id,
        tie_word_embeddings=False,
        text_config={
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
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 980,
            "patch_size": 14,
        },
        perceiver_config={
            "hidden_size": 4096,
            "resampler_n_latents": 64,
            "resampler_depth": 3,
            "resampler_n_heads": 16,
            "resampler_head_dim": 96,
            "num_key_value_heads": 4,
        },
    )
    images = tiny.processor.image_processor
    images.size = {"longest_edge": 980, "shortest_edge": 378}
    return dataclasses.replace(tiny, config=config)


def random_model(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's model with random weights, made where `load_model` would put them."""
    device = _placement(checkpoint)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(checkpoint.dtype)
    try:
        with torch.device(device), no_init_weights():
            model = Idefics2ForConditionalGeneration._from_config(  # noqa: SLF001
                checkpoint.config, attn_implementation="sdpa"
            )
    finally:
        torch.set_default_dtype(previous)
    # Drawing every weight would take minutes on a host: one draw is repeated, at a length that no width divides.
    drawn = torch.randn(1_000_003, device=device, generator=torch.Generator(device).manual_seed(0))
    drawn = drawn.to(checkpoint.dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(float(name.endswith("weight")))
                continue
            scale = 1.0 if name.endswith("latents") else checkpoint.config.text_config.initializer_range
            for part in weight.view(-1).split(len(drawn)):
                torch.mul(drawn[: len(part)], scale, out=part)
    return model.eval()


def load_model(checkpoint: Checkpoint) -> Any:
    """Load the weights in evaluation mode, tensor by tensor, straight to the checkpoint's device.

    Weights that are to be quantized and do not fit the device before that stay on the host.

    Raises:
        ModelError: weights missing, damaged, or too large for the device.

    """
    name, device = checkpoint.settings.model, _placement(checkpoint)
    try:
        model, report = Idefics2ForConditionalGeneration.from_pretrained(
            checkpoint.location,
            revision=checkpoint.settings.revision,
            dtype=checkpoint.dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({"device_map": {"": device}} if device.type == "cuda" else {}),
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(f"{name}: the checkpoint lacks {len(missing)} weights, {missing[0]} among them")
        return model.eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name}: the weights do not fit the GPU's memory; try --quantize fp8, or --device cpu"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load(name, error)) from error


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Return what the weights take in the checkpoint's number format."""
    with torch.device("meta"):
        model = Idefics2ForConditionalGeneration(checkpoint.config)
    weights: int = sum(weight.numel() for weight in model.parameters())
    return weights * torch.finfo(checkpoint.dtype).bits // 8


def free_memory(device: torch.device, limit: float = 0.0) -> int | None:
    """Return the bytes of the GPU's memory that this process may still take; None where memory is the host's.

    Args:
        device: where the model runs.
        limit: GB that the process may have in all; 0 for no limit.

    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    return min(free, int(limit * 1e9) - torch.cuda.memory_reserved(device)) if limit else free


def _placement(checkpoint: Checkpoint) -> torch.device:
    """Choose where weights are put first: on the device, unless they fit it only once they are quantized."""
    if checkpoint.device.type == "cpu" or checkpoint.settings.quantize is Quantize.NONE:
        return checkpoint.device
    free = free_memory(checkpoint.device, checkpoint.settings.gpu_memory) or 0
    return checkpoint.device if weight_bytes(checkpoint) * _LOADING < free else torch.device("cpu")


def _device(wanted: Device, limit: float) -> torch.device:
    available = torch.cuda.is_available()
    if wanted is Device.CUDA and not available:
        raise ModelError("--device cuda: torch sees no CUDA device here; try --device cpu")
    if not available or wanted is Device.CPU:
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    if limit:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 1e9 / torch.cuda.mem_get_info(device)[1]), device)
    return device


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
