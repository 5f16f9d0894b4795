"""A checkpoint of the 8B model's shape without weights: speed and memory do not depend on what weights say."""

from __future__ import annotations

import dataclasses

from idefics_cli.config import TINY_MODEL, ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint, open_checkpoint
from idefics_cli.engine.families.published import IDEFICS2_8B, IDEFICS2_8B_EDGES
from idefics_cli.errors import UsageError


def full_shape_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Return a checkpoint of the published 8B model's shape, with the tiny model's tokenizer.

    Raises:
        UsageError: an adapter or a processor is given, which this checkpoint does not take.

    """
    for option, given in (("--adapter", settings.adapter), ("--processor", settings.processor)):
        if given is not None:
            raise UsageError(f"--random-weights goes without {option}: it has a processor of its own, and no weights")
    tiny = open_checkpoint(dataclasses.replace(settings, model=TINY_MODEL))
    config = {**IDEFICS2_8B, "image_token_id": tiny.config["image_token_id"]}
    processor = {**tiny.processor_config, "size": IDEFICS2_8B_EDGES}
    return dataclasses.replace(tiny, name="random weights, 8B shape", config=config, processor_config=processor)
