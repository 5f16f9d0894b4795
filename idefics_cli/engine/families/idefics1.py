"""Idefics, the first one: its prompts and its images of 224 x 224 pixels. transformers runs it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.answer_text import AnswerText
from idefics_cli.engine.families.backend import (
    END_OF_UTTERANCE,
    backend_rules,
    check_prompt_template,
    max_positions,
    refuse_what_idefics2_has,
    with_choices,
)
from idefics_cli.engine.families.base import Normalization, Prompt
from idefics_cli.engine.families.chat_template import ChatTemplate, named_tokens
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.families.prompt import PromptForm, Tokenizer, check_turns
from idefics_cli.errors import ModelError
from idefics_cli.records import Crop, Turn, plain_turns

_IMAGE, _FAKE = "<image>", "<fake_token_around_image>"
_TURNS = (
    "{% for turn in messages if turn.role != 'system' %}{{ turn.role | capitalize }}:"
    "{% if turn.content[0].type == 'text' %} {% endif %}"
    "{% for part in turn.content %}{{ part.text if part.type == 'text' else '" + _IMAGE + "' }}{% endfor %}"
    "{{ '" + END_OF_UTTERANCE + "\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The form of the model's card; it knows no system turn."""
_SIDE = 224
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which its image processor takes where a file names none."""


@dataclass(frozen=True, slots=True)
class Idefics1ImageProcessor:
    """Squeezes a page into a square, as the Pillow image processor of transformers does."""

    side: int
    """Of the square, in pixels."""
    resample: int = int(Image.Resampling.BICUBIC)

    @property
    def longest_edge(self) -> int:
        """Of one image, in pixels."""
        return self.side

    def render_edge(self, *, split: bool) -> int:  # noqa: ARG002 - a page is never split
        """Return the longest edge, in pixels, at which a page is rendered: two pixels for each one that is seen."""
        return 2 * self.side

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:  # noqa: ARG002
        """Return the one image of an RGB page, aspect ratio not kept."""
        return (np.asarray(page.resize((self.side, self.side), Image.Resampling(self.resample))),)

    def columns(self, width: int, height: int, *, split: bool) -> int:  # noqa: ARG002
        """Return 0: prompts do not say where a sub-image stands."""
        return 0


class Idefics1Family:
    """An Idefics checkpoint, as far as torch is not needed to know it."""

    native_gaps = ("checkpoints of type idefics",)
    chat_refusal = examples_refusal = ""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read its settings.

        Raises:
            ModelError: they can't be understood.
            UsageError: the user asks for what it can't do.

        """
        refuse_what_idefics2_has(checkpoint, "idefics")
        self._checkpoint = checkpoint
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if checkpoint.processor_config.get(step) is False:
                raise ModelError(f"{checkpoint.name}: an image processor with {step} false is not supported")
        self.max_positions = max_positions(checkpoint)
        self.image_token_id = self._id_of(_IMAGE)
        side = self.image_processor.side
        self.warning = f"this model sees a page at {side} x {side} pixels"
        self.split_refusal = f"{self.warning}, never split"
        self.notes = (f"{checkpoint.name}: an Idefics of the first generation, run by transformers; {self.warning}",)

    @functools.cached_property
    def image_processor(self) -> Idefics1ImageProcessor:
        """The size of the checkpoint's images."""
        settings = self._checkpoint.processor_config
        size, resample = settings.get("size") or {}, settings.get("resample")
        side = settings.get("image_size") or (size.get("height") if isinstance(size, dict) else size) or _SIDE
        return Idefics1ImageProcessor(int(side), int(Image.Resampling.BICUBIC if resample is None else resample))

    @functools.cached_property
    def normalization(self) -> Normalization:
        """How the image processor normalizes pixels."""
        settings = self._checkpoint.processor_config
        mean, std = settings.get("image_mean") or _MEAN, settings.get("image_std") or _STD
        scale = float(settings.get("rescale_factor") or 1 / 255)
        return Normalization(scale, tuple(map(float, mean)), tuple(map(float, std)))

    def prompt_builder(self, template: str) -> Idefics1PromptBuilder:
        """Return what builds prompts.

        Raises:
            UsageError: the template holds a special token.

        """
        return Idefics1PromptBuilder(
            self._tokenizer, template, named_tokens(self._checkpoint).get("bos_token") or "<s>"
        )

    def generation(self, settings: ModelSettings) -> GenerationRules:
        """Return how answers are generated; image tokens never are.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the checkpoint can't do what the user asks for.

        """
        ids = (self.image_token_id, self._id_of(_FAKE))
        rules = backend_rules(self._checkpoint, settings, self._tokenizer, ids)
        return with_choices(rules, settings, self.prompt_builder)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._checkpoint, adds_special_tokens=False)

    def _id_of(self, token: str) -> int:
        found = self._tokenizer.id_of(token)
        if found is None:
            raise ModelError(f"{self._checkpoint.name}: the tokenizer lacks {token}")
        return found


class Idefics1PromptBuilder(AnswerText):
    """Builds prompts in the form of the model's card.

    It is written here, not by transformers' processor: that fetches any text that reads as an address.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, bos: str) -> None:
        """Take the tokenizer; see `Idefics1Family.prompt_builder`."""
        super().__init__(tokenizer)
        self._bos = bos
        self._special_tokens = tokenizer.special_tokens | {_IMAGE, _FAKE, END_OF_UTTERANCE}
        has_turns = tokenizer.id_of(END_OF_UTTERANCE) is not None
        self._form = PromptForm(ChatTemplate(_TURNS, "idefics") if has_turns else None, template, _IMAGE)
        check_prompt_template(template, self._special_tokens)

    def build(
        self,
        turns: Sequence[Turn],
        crops: Sequence[int],  # noqa: ARG002 - each page is one image
        shared_turns: int = 0,  # noqa: ARG002 - all is computed anew
        columns: Sequence[int] = (),  # noqa: ARG002
    ) -> Prompt:
        """See `PromptBuilder`."""
        check_turns(turns, self._special_tokens)
        return Prompt(tuple(self._tokenizer.encode(self._words(turns))), 0)  # nothing is shared in the backend

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt; raises UsageError where it can't be written."""
        return self.choice_behind(self._words(plain_turns("?", 1)), text, suppressed_tokens)

    def _words(self, turns: Sequence[Turn]) -> str:
        """Return a conversation as the model's own processor writes it.

        It drops the spaces of texts beside images, and lets images with nothing between share a fake token.
        """
        first, *others = self._form.words(turns).split(_IMAGE)
        words = self._bos + first.strip(" ")
        for at, text in enumerate(others):
            is_shared = at > 0 and not others[at - 1]
            words += f"{'' if is_shared else _FAKE}{_IMAGE}{_FAKE}{text.strip(' ')}"
        return words
