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
    refuse_what_idefics2_has,
    with_choices,
)
from idefics_cli.engine.families.chat_template import ChatTemplate, chat_template_of, messages_of
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.families.prompt import PromptForm, Tokenizer, check_turns
from idefics_cli.engine.families.template_check import TemplateCheck
from idefics_cli.errors import ModelError
from idefics_cli.records import Crop, Turn, plain_turns

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
            ModelError: it has no chat template, or one that can't be read.
            UsageError: the user asks for what it can't do.

        """
        refuse_what_idefics2_has(checkpoint, kind)
        chat = chat_template_of(checkpoint)
        if chat is None:
            raise ModelError(
                f"{checkpoint.name}: a checkpoint of type {kind} without a chat template: how it is asked is not "
                "known; --processor takes processor and template from elsewhere"
            )
        self._checkpoint, self._chat = checkpoint, chat
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

    @property
    def chat_refusal(self) -> str:
        """Why questions can't go on after an answer; empty where they can."""
        return self._check.chat_refusal

    @property
    def examples_refusal(self) -> str:
        """Why examples can't stand before a question; empty where they can."""
        return self._check.examples_refusal

    def prompt_builder(self, template: str) -> ProcessorPrompts:
        """Return what makes messages of conversations, and reads answers.

        Raises:
            ModelError: the chat template refuses a question about a page.
            UsageError: the prompt template holds a special token.

        """
        return ProcessorPrompts(self._chat, self._check, self._tokenizer, self._special_tokens, template)

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

    @functools.cached_property
    def _special_tokens(self) -> frozenset[str]:
        settings = (self._checkpoint.processor_config, self._checkpoint.tokenizer_config)
        return self._tokenizer.special_tokens.union(*map(_media_tokens, settings))

    @functools.cached_property
    def _check(self) -> TemplateCheck:
        return TemplateCheck(self._chat, self._checkpoint.name, self._special_tokens)


class ProcessorPrompts(AnswerText):
    """Makes messages for the checkpoint's own processor, which makes the prompt; reads and writes answers."""

    def __init__(
        self,
        chat: ChatTemplate,
        check: TemplateCheck,
        tokenizer: Tokenizer,
        special_tokens: frozenset[str],
        template: str,
    ) -> None:
        """Take the tokenizer; see `ProcessorFamily.prompt_builder`."""
        super().__init__(tokenizer)
        self._check, self._special_tokens = check, special_tokens
        self._form = PromptForm(chat, template, "")
        check_prompt_template(template, special_tokens)

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Return a conversation as the processor's chat template takes it.

        Raises:
            RowFailedError: a text holds one of the model's special tokens, or the template refuses these turns
                or leaves some of them out.

        """
        check_turns(turns, self._special_tokens)
        asked = self._form.asked(turns)
        self._check.moved(asked)
        return messages_of(asked)

    def warning(self, turns: Sequence[Turn]) -> str:
        """Return what the answer to a conversation should be read with; empty for nothing."""
        return self._check.moved(self._form.asked(turns))

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt.

        Raises:
            UsageError: it can't be written.

        """
        return self.choice_behind(self._form.words(plain_turns("?", 1)), text, suppressed_tokens)


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
