"""What families have in common: what they refuse, and how their answers are generated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, Protocol

from idefics_cli.config import ModelSettings, flag_of
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.families.prompt import Tokenizer
from idefics_cli.errors import ModelError, UsageError

END_OF_UTTERANCE = "<end_of_utterance>"
_NATIVE = "idefics2, idefics3 and smolvlm"


def refuse_what_idefics2_has(checkpoint: Checkpoint, kind: str) -> None:
    """Refuse what is done only for checkpoints that the native engine runs.

    Raises:
        ModelError: an adapter, or weights that are stored quantized.
        UsageError: edges of its images.

    """
    name = f"{checkpoint.name}: a checkpoint of type {kind}"
    if checkpoint.adapter is not None:
        raise ModelError(f"{name}: --adapter is merged into {_NATIVE} checkpoints only; merge it with PEFT beforehand")
    if checkpoint.stored is not None:
        raise ModelError(f"{name}: weights that are stored quantized are read of {_NATIVE} checkpoints only")
    if checkpoint.image_size:
        edges = " and ".join(flag_of(edge) for edge in checkpoint.image_size)
        raise UsageError(f"{name}: {edges} is for {_NATIVE} checkpoints; its own processor says how large images are")


def max_positions(checkpoint: Checkpoint) -> float:
    """Return the most tokens that a checkpoint's text model takes; infinity where config.json does not say."""
    config = checkpoint.config
    parts: list[Any] = [config.get("text_config"), config.get("llm_config"), config]
    found = [part.get("max_position_embeddings") for part in parts if isinstance(part, dict | type(config))]
    return next((int(one) for one in found if one), math.inf)


def check_prompt_template(template: str, special_tokens: Collection[str]) -> None:
    """Refuse a template that holds a special token; raises UsageError."""
    if found := sorted(token for token in special_tokens if token in template):
        raise UsageError(f"--prompt holds the model's special token {found[0]}; images are put in by themselves")


def backend_rules(
    checkpoint: Checkpoint, settings: ModelSettings, tokenizer: Tokenizer, image_tokens: Collection[int]
) -> GenerationRules:
    """Return how answers are generated, choices aside; `<end_of_utterance>` ends them where the tokenizer has it.

    Args:
        checkpoint: whose settings are read.
        settings: of the user.
        tokenizer: of the checkpoint.
        image_tokens: are never generated.

    Raises:
        ModelError: the checkpoint's settings can't be understood.
        UsageError: a stop string holds a special token.

    """
    rules = GenerationRules.of(checkpoint, settings, image_tokens)
    end = tokenizer.id_of(END_OF_UTTERANCE)
    if end is not None:  # what generation_config.json of Idefics3 lacks
        rules = dataclasses.replace(rules, eos_token_ids=rules.eos_token_ids | {end})
    check_stop(rules, settings, tokenizer.special_tokens)
    return rules


def check_stop(rules: GenerationRules, settings: ModelSettings, special_tokens: Collection[str]) -> None:
    """Refuse stop strings that hold a special token.

    Raises:
        ModelError: one of the checkpoint's.
        UsageError: one of the user's.

    """
    for text in rules.stop:
        if found := sorted(token for token in special_tokens if token in text):
            kind, flag = (UsageError, "--stop") if text in settings.stop else (ModelError, "stop_strings")
            raise kind(f"{flag} {text!r} holds the special token {found[0]}, which no answer's text does: drop it")


class ChoiceWriter(Protocol):
    """Writes an answer as tokens behind a prompt."""

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return the answer; raises UsageError where it can't be written."""


def with_choices(
    rules: GenerationRules, settings: ModelSettings, prompt_builder: Callable[[str], ChoiceWriter]
) -> GenerationRules:
    """Return rules by which an answer is one of `--choices`, where there are any.

    Raises:
        UsageError: one of them can't be written.

    """
    if settings.choices is None:
        return rules
    prompts = prompt_builder(settings.prompt)
    choices = [prompts.choice(text, rules.suppressed_tokens) for text in settings.choices]
    longest = max(len(tokens) for choice in choices for tokens in choice.tokens)
    return dataclasses.replace(rules, choices=tuple(choices), max_new_tokens=longest + 1)
