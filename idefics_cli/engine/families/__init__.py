"""What each kind of checkpoint knows without torch: its images, its prompts, its tokens. Page processes use it too."""

from __future__ import annotations

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.errors import ModelError


def family_of(checkpoint: Checkpoint) -> Idefics2Family:
    """Return the family of a checkpoint.

    Raises:
        ModelError: it is of no family that is known, its settings can't be honoured, or its adapter does not fit.

    """
    kind = checkpoint.config.get("model_type")
    if kind != "idefics2":
        raise ModelError(f"{checkpoint.name}: a checkpoint of type {kind}; idefics-cli runs idefics2 checkpoints")
    try:
        family = Idefics2Family(checkpoint)
        family.image_processor, family.normalization  # noqa: B018 - read now, so that a mistake is told now
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{checkpoint.name}: its settings can't be understood: {error}") from error
    if checkpoint.adapter is not None:
        tied = ("lm_head.weight", "model.text_model.embed_tokens.weight") if family.config.tie_word_embeddings else ()
        checkpoint.adapter.check(checkpoint.weight_shapes(), tied)
    return family
