"""`--quantize bnb-8bit` and `bnb-4bit`: products by bitsandbytes where transformers runs the model."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import TYPE_CHECKING, Any

from idefics_cli.config import Quantize
from idefics_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

_MODEL_TYPES = ("idefics2", "idefics3", "smolvlm")  # whose text model is known by its name


def check_bitsandbytes(quantize: Quantize, model: str, model_type: object, device: str) -> None:
    """Refuse what bitsandbytes can't do, before anything is loaded.

    Args:
        quantize: a format of bitsandbytes.
        model: what the user calls the checkpoint.
        model_type: of its config.json.
        device: cpu, cuda or mps.

    Raises:
        ModelError: the package is missing, or the checkpoint is of a kind whose text model is not known.
        UsageError: the device is one that bitsandbytes does not run on.

    """
    if model_type not in _MODEL_TYPES:
        raise ModelError(f"{model}: --quantize {quantize} is for checkpoints of type {', '.join(_MODEL_TYPES)}")
    if device == "mps":
        raise UsageError(f"--quantize {quantize}: bitsandbytes is not for mps; use --quantize int8 or int4")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--quantize {quantize} needs bitsandbytes: pip install 'idefics-cli[bitsandbytes]'")


def quantize_text_model(model: Any, quantize: Quantize, device: torch.device) -> Any:
    """Replace the products of a model's text model, and move the whole to a device.

    The vision model, the connector and the head stay in the model's dtype, as transformers leaves them where its
    `llm_int8_skip_modules` names them. 8 bits are LLM.int8() with its threshold of 6 (Dettmers et al., 2022); 4 bits
    are NF4 with double quantization (QLoRA, Dettmers et al., 2023), as on the card of Idefics2.

    Args:
        model: an Idefics2 or Idefics3 on the CPU, in the dtype that it computes in.
        quantize: the format of bitsandbytes.
        device: where the weights are quantized; they go there one by one.

    """
    from torch import nn

    text, bnb = model.model.text_model, _import_bitsandbytes()
    products = [(name, layer) for name, layer in text.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in products:
        owner, _, attribute = name.rpartition(".")
        setattr(text.get_submodule(owner), attribute, _quantized(layer, quantize, bnb).to(device))
    return model.to(device)


def _import_bitsandbytes() -> Any:
    """Import bitsandbytes without the package `kernels`, by which it would fetch code from the hub on some CPUs."""
    name, absent = "kernels", object()
    before: Any = sys.modules.get(name, absent)
    modules: dict[str, Any] = sys.modules
    modules[name] = None  # its import fails, which bitsandbytes expects, and warns of
    warnings_of = logging.getLogger("bitsandbytes.backends.cpu.ops")
    warnings_of.addFilter(_is_not_about_kernels)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        warnings_of.removeFilter(_is_not_about_kernels)
        if before is absent:
            del modules[name]
        else:
            modules[name] = before


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in record.getMessage()


def _quantized(layer: Any, quantize: Quantize, bnb: Any) -> Any:
    shape = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": layer.bias is not None}
    if quantize is Quantize.BNB_8BIT:
        made = bnb.nn.Linear8bitLt(**shape, has_fp16_weights=False, threshold=6.0, device="meta")
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(
            **shape, compute_dtype=layer.weight.dtype, compress_statistics=True, quant_type="nf4", device="meta"
        )
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
        )
    made.bias = layer.bias
    return made
