"""Checkpoints of random weights, a few thousand each, saved by transformers; their answers are noise, but never ties."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Idefics2Config, Idefics2ForConditionalGeneration

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint, open_checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.families.base import NativeFamily
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.models.decoder import PackedSegments, Segment, pack
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from idefics_cli.engine.transformers import TransformersModel
from idefics_cli.records import PreparedPage, Request
from tests.conftest import SAMPLES

CPU = torch.device("cpu")
LATENTS = 4
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 490,
}
PERCEIVER = {
    "hidden_size": 32,
    "resampler_n_latents": LATENTS,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 16,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
}
TEXT = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 132,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


def save_checkpoint(
    folder: Path,
    *,
    vision: Mapping[str, Any] = {},
    perceiver: Mapping[str, Any] = {},
    text: Mapping[str, Any] = {},
    top: Mapping[str, Any] = {},
    generation: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] = {},
    images: Mapping[str, Any] = {},
    dtype: torch.dtype = torch.float32,
    **saving: Any,
) -> Path:
    """Save a checkpoint with changes to its settings: None for `generation` leaves no generation_config.json."""
    config = Idefics2Config(
        vision_config=VISION | dict(vision),
        perceiver_config=PERCEIVER | dict(perceiver),
        text_config=TEXT | dict(text),
        **({"image_token_id": 130, "eos_token_id": 131, "bos_token_id": 1, "pad_token_id": 0} | dict(top)),
    )
    torch.manual_seed(0)
    model = Idefics2ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.1)
        else:
            fan_in = (
                weight[0].numel() if weight.ndim > 1 and "embed_tokens" not in name and "latents" not in name else 1
            )
            torch.nn.init.normal_(weight, std=1.5 * fan_in**-0.5)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, **saving)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SAMPLES / "tiny-idefics2" / name, folder)
    settings = json.loads((SAMPLES / "tiny-idefics2" / "processor_config.json").read_text())
    settings["image_seq_len"] = LATENTS
    settings["image_processor"] |= images
    (folder / "processor_config.json").write_text(json.dumps(settings | dict(processor)))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        ids = {"bos_token_id": 1, "eos_token_id": 131, "pad_token_id": 0}
        (folder / "generation_config.json").write_text(json.dumps(ids | dict(generation)))
    return folder


def settings_of(folder: Path | str, **changes: Any) -> ModelSettings:
    given: dict[str, Any] = {"device": Device.CPU, "dtype": Dtype.FLOAT32, "max_new_tokens": 12}
    return ModelSettings(str(folder), **(given | changes))


def opened(settings: ModelSettings) -> tuple[Checkpoint, NativeFamily, DeviceChoice]:
    checkpoint = open_checkpoint(settings)
    dtype = "float32" if settings.dtype is Dtype.AUTO else str(settings.dtype)
    return checkpoint, native_family_of(checkpoint), DeviceChoice("cpu", dtype)


def weights_of(settings: ModelSettings) -> tuple[Weights, NativeFamily]:
    checkpoint, family, choice = opened(settings)
    dtype: torch.dtype = getattr(torch, choice.dtype)
    return Weights(CheckpointSource(checkpoint, dtype, CPU), settings.quantize, dtype, CPU), family


def reference(settings: ModelSettings) -> TransformersModel:
    checkpoint, family, choice = opened(settings)
    return TransformersModel(checkpoint, family, settings, choice)


def packed_segments(segments: Sequence[Segment], *, padded_to: int = 0) -> PackedSegments:
    """Lay segments out on the CPU, filled up to so many tokens."""
    lengths = [segment.length for segment in segments]
    tokens = max(padded_to, sum(lengths))
    packed = torch.from_numpy(pack(segments, tokens, len(segments)))
    return PackedSegments(packed, tokens, max_query_length=max(lengths))


def small_runner(
    settings: ModelSettings, prepared: tuple[Weights, NativeFamily] | None = None
) -> tuple[ModelRunner, NativeFamily]:
    """Build the models of a checkpoint; `EngineCore` makes an engine without a thread of them."""
    weights, family = prepared or weights_of(settings)
    with torch.inference_mode():
        return ModelRunner(weights, family, settings), family


def expected(
    folder: Path, limit: int = 12, *, requests: Sequence[Request] | None = None, **arguments: Any
) -> list[tuple[str, int]]:
    """Text and number of tokens by transformers' model, tokenizer and `generate`, nothing of ours but prompts and pixels."""
    settings = settings_of(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "stop_strings" in arguments:
        arguments["tokenizer"] = tokenizer
    found = []
    for inputs in map(model_inputs(settings), requests or small_requests()):
        with torch.inference_mode():
            generated = model.generate(**inputs, **({"do_sample": False, "max_new_tokens": limit} | arguments))
        new = generated[0, inputs["input_ids"].shape[1] :]
        found.append((tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)))
    return found


def model_inputs(settings: ModelSettings) -> Callable[[Request], dict[str, torch.Tensor]]:
    """Return what makes the arguments of transformers' model of a request."""
    ours = reference(settings)
    prompts = opened(settings)[1].prompt_builder("{question}")

    def inputs(request: Request) -> dict[str, torch.Tensor]:
        counts, columns = [len(page.crops) for page in request.pages], [page.columns for page in request.pages]
        tokens = torch.tensor([prompts.build(request.conversation, counts, columns=columns).tokens])
        pixels, mask = ours.pixels([[crop for page in request.pages for crop in page.crops]])
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": pixels,
            "pixel_attention_mask": mask,
        }

    return inputs


def noise_page(seed: int, *shapes: tuple[int, int]) -> PreparedPage:
    """A page of crops, each (height, width) in patches."""
    rng = np.random.default_rng(seed)
    crops = tuple(rng.integers(0, 255, (14 * rows, 14 * columns, 3), dtype=np.uint8) for rows, columns in shapes)
    return PreparedPage(crops, "pillow", 0.0, 0.0)


def small_requests() -> list[Request]:
    """Six questions about three pages, one of them split, and one question about two pages."""
    pages = {
        "split": noise_page(0, (14, 16), (14, 16), (14, 16), (14, 16), (15, 17)),
        "whole": noise_page(1, (16, 18)),
        "wide": noise_page(2, (14, 30)),
    }
    asked = [
        ("Who?", ("whole",)),
        ("What is the total?", ("split",)),
        ("When was it paid?", ("split",)),
        ("Where?", ("wide",)),
        ("Who is the customer of this?", ("whole",)),
        ("Both?", ("wide", "whole")),
    ]
    return [Request(question, tuple(pages[name] for name in ids), ids) for question, ids in asked]
