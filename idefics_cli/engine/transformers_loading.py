"""Loads the models that transformers runs: checkpoints as they are, with an adapter, quantized ones, random weights."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from safetensors import SafetensorError

from idefics_cli.config import Quantize
from idefics_cli.engine.bitsandbytes import quantize_text_model
from idefics_cli.engine.checkpoint import GENERATION_CONFIG, Checkpoint
from idefics_cli.engine.native.torch_device import wide_dtype
from idefics_cli.engine.native.weights import CheckpointSource, RandomSource, Source
from idefics_cli.errors import ModelError

_NOT_LOADED = (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
_COMPUTED_ANEW = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
"""Weights that older files hold, and no model reads."""
_TOO_LARGE = "the weights do not fit the GPU's memory; try --device cpu"


def load_processor(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's own processor, which pads on the left; code from the checkpoint is never run.

    Raises:
        ModelError: it can't be loaded, or needs a package that is not installed.

    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(checkpoint.tokenizer_file.parent, trust_remote_code=False)
    except Exception as error:  # of any library that a processor needs
        raise ModelError(f"{checkpoint.name}: can't load its processor: {_words(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise ModelError(f"{checkpoint.name}: its processor is not one of images and text")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _words(error: Exception) -> str:
    """Say what transformers could not load, on one line."""
    if "trust_remote_code" in str(error):
        return "it needs code of its own (auto_map in its files), which is never run"
    if "Unrecognized configuration class" in str(error):
        return "transformers has no model of its type that takes images and text"
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2] if line.strip()) or repr(error)


def load_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None,
    quantize: Quantize = Quantize.NONE,
) -> Any:
    """Load the weights in evaluation mode, an adapter merged.

    Args:
        checkpoint: whose weights are read.
        device: that they go to.
        dtype: of the model.
        attention: the implementation by transformers' name; None is its choice.
        quantize: a format of bitsandbytes; any other leaves weights as they are.

    Raises:
        ModelError: weights missing, damaged, or too large for the device.

    """
    name = checkpoint.name
    load = _from_pretrained if checkpoint.stored is None else _unpacked
    try:
        if quantize.is_native:
            return _with_wide_connector(load(checkpoint, device, dtype, attention))
        model = load(checkpoint, torch.device("cpu"), dtype, attention)
        return _with_wide_connector(quantize_text_model(model, quantize, device))
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{name}: {_TOO_LARGE}") from error
    except (
        ImportError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"{name}: can't load this checkpoint: {_words(error)}") from error


def _from_pretrained(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str | None) -> Any:
    """Load a checkpoint as transformers does, straight to the device; what it misses or does not know is refused."""
    from transformers import AutoModelForImageTextToText, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, report = AutoModelForImageTextToText.from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    for words, key in (
        ("lacks", "missing_keys"),
        ("has no place in its config.json for", "unexpected_keys"),
        ("has in its config.json another shape for", "mismatched_keys"),
    ):
        names = (one if isinstance(one, str) else one[0] for one in report[key])
        found = sorted(one for one in names if key != "unexpected_keys" or not _COMPUTED_ANEW.fullmatch(one))
        if found:
            raise ModelError(f"{checkpoint.name}: the checkpoint {words} {len(found)} weights, {found[0]} among them")
    model = model.to(device).eval()
    _merge_adapter(checkpoint, model, device, dtype)
    if checkpoint.generation_config and not (checkpoint.folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_dict(
            copy.deepcopy(dict(checkpoint.generation_config))
        )  # --processor's
    return model


@torch.no_grad()
def _merge_adapter(checkpoint: Checkpoint, model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Read the weights that an adapter changes anew, from the files: those of the model may have been cast.

    Raises:
        ModelError: the adapter changes a weight that the model lacks.

    """
    if checkpoint.adapter is None:
        return
    source, weights = CheckpointSource(checkpoint, dtype, device), model.state_dict()
    for name in checkpoint.adapter.updates:
        if name not in weights:
            raise ModelError(f"{checkpoint.adapter.name}: the adapter changes {name}, which the model does not have")
        weights[name].copy_(source(name))


def _unpacked(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str | None) -> Any:
    """Load weights that are stored quantized in the dtype of the model: no library for their format is needed."""
    from transformers import GenerationConfig

    model = _without_weights(checkpoint, dtype, attention)
    given = checkpoint.weight_shapes()
    for name, weight in _weights(model).items():
        if given.get(name) != tuple(weight.shape):
            raise ModelError(f"{checkpoint.name}: {name} is {given.get(name)}, by config.json {tuple(weight.shape)}")
    model = _filled(model, CheckpointSource(checkpoint, dtype, device), device)
    if checkpoint.generation_config:
        model.generation_config = GenerationConfig.from_dict(copy.deepcopy(dict(checkpoint.generation_config)))
    return model


def load_random(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None,
    quantize: Quantize = Quantize.NONE,
) -> Any:
    """Make a model with random weights, as `load_checkpoint` makes one; raises ModelError where it is too large."""
    model = _without_weights(checkpoint, dtype, attention)
    shapes = {name: tuple(weight.shape) for name, weight in _weights(model).items()}
    drawn = RandomSource(shapes, dtype, device)  # also what is then quantized from the host: a CPU draws for minutes
    filled_on = device if quantize.is_native else torch.device("cpu")
    try:
        model = _filled(model, lambda name: drawn(name).to(filled_on), filled_on)
        if not quantize.is_native:
            model = quantize_text_model(model, quantize, device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{checkpoint.name}: {_TOO_LARGE}") from error
    return _with_wide_connector(model)


def _with_wide_connector(model: Any) -> Any:
    """Let the connector of an Idefics2 in float16 compute in a dtype that holds what its gated MLP makes."""
    if model.config.model_type != "idefics2" or model.dtype is not torch.float16:
        return model
    wide = wide_dtype(model.dtype, model.device)

    def widened(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def cast(value: Any) -> Any:
            return value.to(wide) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        return tuple(map(cast, arguments)), {name: cast(value) for name, value in named.items()}

    def narrowed(_: Any, __: Any, features: torch.Tensor) -> torch.Tensor:
        return features.to(torch.float16)  # normed

    connector = model.model.connector
    connector.to(wide)
    connector.register_forward_pre_hook(widened, with_kwargs=True)
    connector.register_forward_hook(narrowed)
    return model


def _without_weights(checkpoint: Checkpoint, dtype: torch.dtype, attention: str | None) -> Any:
    """Return a model of a checkpoint's shape on no device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    # A copy: transformers' configurations change what they are given.
    settings = copy.deepcopy({key: value for key, value in checkpoint.config.items() if key != "quantization_config"})
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a model by name, without a head that is the embedding."""
    weights: dict[str, torch.Tensor] = model.state_dict()
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def _filled(model: Any, source: Source, device: torch.device) -> Any:
    """Give a model on no device its weights."""
    config = model.config
    model.load_state_dict({name: source(name) for name in _weights(model)}, assign=True, strict=False)
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):  # rotary frequencies are not saved: computed anew
        if buffer.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            fresh = type(owner)(config.text_config)
            owner.register_buffer(
                name.rpartition(".")[2],
                dict(fresh.named_buffers())[name.rpartition(".")[2]].to(device),
                persistent=False,
            )
    return model.eval()
