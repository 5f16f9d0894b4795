"""A checkpoint of a published model's shape without weights: speed and memory do not depend on what weights say."""

from __future__ import annotations

import dataclasses

from idefics_cli.config import DEFAULT_MODEL, TINY_MODEL, ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint, open_checkpoint
from idefics_cli.engine.families.published import PUBLISHED
from idefics_cli.errors import UsageError


def full_shape_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Return a checkpoint of a published model's shape, with the tiny model's tokenizer.

    That tokenizer writes the marks of rows and columns letter by letter: prompts about split pages of tiles are a sixth
    longer than those of the published checkpoints.

    Args:
        settings: of the model; `tiny`, which has no published shape, stands for the 8B model.

    Raises:
        UsageError: the model has no shape that is known here; or an adapter or a processor is given, which this
            checkpoint does not take.

    """
    for option, given in (("--adapter", settings.adapter), ("--processor", settings.processor)):
        if given is not None:
            raise UsageError(f"--random-weights goes without {option}: it has a processor of its own, and no weights")
    name = DEFAULT_MODEL if settings.model == TINY_MODEL else settings.model
    if name not in PUBLISHED:
        raise UsageError(f"--random-weights knows the shapes of {', '.join(PUBLISHED)}; not of {name}")
    shape, tiny = PUBLISHED[name], open_checkpoint(dataclasses.replace(settings, model=TINY_MODEL))
    config = {**shape.config, "image_token_id": tiny.config["image_token_id"]}
    processor = {**tiny.processor_config, **shape.processor}
    label = "random weights, " + ("8B shape" if name == DEFAULT_MODEL else f"shape of {name}")
    return dataclasses.replace(tiny, name=label, config=config, processor_config=processor)
