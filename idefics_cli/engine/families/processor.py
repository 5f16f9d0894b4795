"""Checkpoints of any other kind: transformers runs them, with their own processor and chat template."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.answer_text import AnswerText
from idefics_cli.engine.families.backend import (
    backend_rules,
    check_prompt_template,
    max_positions,
    only_question,
    refuse_what_idefics2_has,
    with_choices,
)
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.families.prompt import ChatTemplate, Tokenizer, check_turns
from idefics_cli.errors import ModelError
from idefics_cli.records import Crop, Turn

_EDGES = 384, 4096  # the least and the most at which a page is rendered
_UNKNOWN_EDGE = 1960
_MOST_EDGE = 10_000  # of a side: what is more counts the pixels of the whole image
_A4 = math.sqrt(2)


@dataclass(frozen=True, slots=True)
class WholePages:
    """Hands pages over as they are: the checkpoint's own processor scales and splits them."""

    longest_edge: int
    """At which pages are rendered; what its own processor does not take of it, it scales away."""

    def render_edge(self, *, split: bool) -> int:  # noqa: ARG002 - never split here
        """Return the longest edge, in pixels, at which a page is rendered."""
        return self.longest_edge

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:  # noqa: ARG002
        """Return an RGB page; one beyond the largest size is scaled down, so that memory is bounded."""
        most = max(_EDGES[1], self.longest_edge)
        if max(page.size) > most:
            page = page.copy()
            page.thumbnail((most, most), Image.Resampling.LANCZOS)
        return (np.asarray(page),)

    def columns(self, width: int, height: int, *, split: bool) -> int:  # noqa: ARG002
        """Return 0: prompts do not say where a sub-image stands."""
        return 0


class ProcessorFamily:
    """A checkpoint with a processor of its own, as far as torch is not needed to know it."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        """Read its settings.

        Raises:
            ModelError: it has no chat template.
            UsageError: the user asks for what it can't do.

        """
        refuse_what_idefics2_has(checkpoint, kind)
        if not checkpoint.chat_template:
            raise ModelError(
                f"{checkpoint.name}: a checkpoint of type {kind} without a chat template: how it is asked is not "
                "known; --processor takes processor and template from elsewhere"
            )
        self._checkpoint = checkpoint
        self.max_positions = max_positions(checkpoint)
        self.native_gaps = (f"checkpoints of type {kind}",)
        self.warning = ""
        self.split_refusal = "the checkpoint's own processor gets whole pages, and splits them as it likes"
        self.notes = (
            f"{checkpoint.name}: a checkpoint of type {kind}, run by transformers with its own processor; unmeasured",
        )

    @functools.cached_property
    def image_processor(self) -> WholePages:
        """The size at which pages are rendered."""
        return WholePages(render_edge(self._checkpoint.processor_config))

    def prompt_builder(self, template: str) -> ProcessorPrompts:
        """Return what checks questions and reads answers.

        Raises:
            ModelError: the chat template can't be read.
            UsageError: the prompt template holds a special token.

        """
        return ProcessorPrompts(self._checkpoint, self._tokenizer, template)

    def generation(self, settings: ModelSettings) -> GenerationRules:
        """Return how answers are generated.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the checkpoint can't do what the user asks for.

        """
        rules = backend_rules(self._checkpoint, settings, self._tokenizer, ())
        return with_choices(rules, settings, self.prompt_builder)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._checkpoint, adds_special_tokens=False)


class ProcessorPrompts(AnswerText):
    """Checks questions, and reads and writes answers; the prompts are made by the checkpoint's own processor."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, template: str) -> None:
        """Take the tokenizer; see `ProcessorFamily.prompt_builder`."""
        super().__init__(tokenizer)
        self._template = template
        self._chat = ChatTemplate(checkpoint.chat_template or "", checkpoint.name)
        named = (*_media_tokens(checkpoint.processor_config), *_media_tokens(checkpoint.tokenizer_config))
        self._special_tokens = tokenizer.special_tokens.union(named)
        check_prompt_template(template, self._special_tokens)

    def text(self, turns: Sequence[Turn]) -> str:
        """Return the words of a user's turn.

        Raises:
            RowFailedError: the question holds one of the model's special tokens, or it is a conversation.

        """
        check_turns(turns, self._special_tokens)
        return self._template.replace("{question}", only_question(turns))

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt.

        Raises:
            ModelError: the chat template refuses a user's turn.
            UsageError: it can't be written.

        """
        content = [{"type": "text", "text": self._template.replace("{question}", "?")}]
        return self.choice_behind(self._chat.render([{"role": "user", "content": content}]), text, suppressed_tokens)


def render_edge(settings: Mapping[str, Any]) -> int:
    """Return the longest edge, in pixels, that an image processor makes use of, from its own settings.

    Twice the side of those that squeeze or cut a page into a square. Some count the pixels of the whole image.
    """
    size = settings.get("size")
    size = size if isinstance(size, dict) else {"height": size} if isinstance(size, int) else {}
    found = [size.get("longest_edge"), size.get("max_pixels"), settings.get("max_pixels")]
    found += [2 * size[name] for name in ("height", "width") if isinstance(size.get(name), int)]
    if "longest_edge" not in size and isinstance(size.get("shortest_edge"), int):
        found.append(2 * size["shortest_edge"])
    found += [side for pair in settings.get("image_grid_pinpoints") or () for side in pair]
    edges = [one if one <= _MOST_EDGE else math.sqrt(one * _A4) for one in found if isinstance(one, int) and one > 0]
    return min(max(round(max(edges, default=_UNKNOWN_EDGE)), _EDGES[0]), _EDGES[1])


def _media_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts that stand for images or videos in prompts."""
    for name, value in settings.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith(("image_token", "video_token")) and isinstance(token, str) and token:
            yield token
        if name in ("extra_special_tokens", "model_specific_special_tokens") and isinstance(value, dict):
            yield from _media_tokens(value)
