"""What each kind of checkpoint knows without torch: its images, its prompts, its tokens. Page processes use it too."""

from __future__ import annotations

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.base import Family
from idefics_cli.engine.families.idefics1 import Idefics1Family
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.families.idefics3 import MODEL_TYPES, Idefics3Family
from idefics_cli.engine.families.processor import ProcessorFamily
from idefics_cli.errors import ModelError

_NATIVE: dict[str, type[Idefics2Family] | type[Idefics3Family]] = {
    "idefics2": Idefics2Family,
    **dict.fromkeys(MODEL_TYPES, Idefics3Family),
}


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint.

    Raises:
        ModelError: it is of no family that is known, its settings can't be honoured, or its adapter does not fit.
        UsageError: it can't do what the user asks for.

    """
    kind = checkpoint.config.get("model_type")
    if kind in _NATIVE:
        return native_family_of(checkpoint)
    try:
        family = Idefics1Family(checkpoint) if kind == "idefics" else _processor_family(checkpoint, kind)
        family.image_processor  # noqa: B018 - read now, so that a mistake is told now
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{checkpoint.name}: its settings can't be understood: {error}") from error
    return family


def native_family_of(checkpoint: Checkpoint, what: str = "this") -> Idefics2Family | Idefics3Family:
    """Return the family of a checkpoint whose kind the native engine runs.

    Args:
        checkpoint: whose family is asked for.
        what: for which no other family will do.

    Raises:
        ModelError: it is of another family, its settings can't be honoured, or its adapter does not fit.
        UsageError: its images can't have the size that the user wants.

    """
    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str) or kind not in _NATIVE:
        kinds = ", ".join(_NATIVE)
        raise ModelError(f"{checkpoint.name}: a checkpoint of type {kind}; {what} is for {kinds} checkpoints")
    try:
        family = _NATIVE[kind](checkpoint)
        family.image_processor, family.normalization  # noqa: B018 - read now, so that a mistake is told now
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{checkpoint.name}: its settings can't be understood: {error}") from error
    if checkpoint.adapter is not None:
        tied = ("lm_head.weight", "model.text_model.embed_tokens.weight") if family.config.tie_word_embeddings else ()
        checkpoint.adapter.check(checkpoint.weight_shapes(), tied)
    return family


def idefics2_family_of(checkpoint: Checkpoint, what: str = "this") -> Idefics2Family:
    """Return the family of an Idefics2 checkpoint; see `native_family_of`."""
    family = native_family_of(checkpoint, what)
    assert isinstance(family, Idefics2Family)
    return family


def _processor_family(checkpoint: Checkpoint, kind: object) -> ProcessorFamily:
    if not isinstance(kind, str) or not kind:
        raise ModelError(f"{checkpoint.name}: config.json names no model_type")
    if not any(isinstance(checkpoint.config.get(part), dict) for part in ("vision_config", "vit_config", "vision")):
        raise ModelError(f"{checkpoint.name}: a checkpoint of type {kind}, with no vision model in config.json")
    return ProcessorFamily(checkpoint, kind)
