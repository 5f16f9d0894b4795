"""Idefics2: its prompts, and what its checkpoints ask for."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence

from PIL import Image

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.answer_text import AnswerText
from idefics_cli.engine.families.base import Normalization, Prompt
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.families.idefics2_config import Idefics2Config
from idefics_cli.engine.families.idefics2_images import Idefics2ImageProcessor, check_edges
from idefics_cli.engine.families.prompt import ChatTemplate, PromptForm, Tokenizer, check_turns
from idefics_cli.errors import FailureKind, ModelError, RowFailedError, UsageError
from idefics_cli.records import PagePart, Turn, plain_turns

__all__ = ["Idefics2Config", "Idefics2Family", "Idefics2ImageProcessor", "Idefics2PromptBuilder"]

_IMAGE, _FAKE = "<image>", "<fake_token_around_image>"
_HARMLESS_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")


class Idefics2Family:
    """An Idefics2 checkpoint, as far as torch is not needed to know it."""

    warning = split_refusal = ""
    notes: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read its settings.

        Raises:
            ModelError: they ask for something that this tool does not do, or contradict one another.

        """
        self._checkpoint = checkpoint
        self.config = Idefics2Config.of(checkpoint.config, checkpoint.name)
        settings = checkpoint.processor_config
        if settings.get("do_resize") is False:
            raise ModelError(f"{checkpoint.name}: an image processor that does not resize (do_resize) is not supported")
        latents = self.config.perceiver.num_latents
        if int(settings.get("image_seq_len", latents)) != latents:
            raise ModelError(
                f"{checkpoint.name}: image_seq_len {settings['image_seq_len']} of the processor is not the model's "
                f"number of latents, {latents}"
            )
        cleanup = checkpoint.tokenizer_config.get("clean_up_tokenization_spaces")
        self.native_gaps = self.config.gaps + (("clean_up_tokenization_spaces",) if cleanup else ())

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.config.text.max_positions

    @functools.cached_property
    def image_processor(self) -> Idefics2ImageProcessor:
        """The sizes of the checkpoint's image processor, or those that the user wants.

        Raises:
            ModelError: the checkpoint's can't be understood.
            UsageError: the user's are more than the model takes, or contradict one another.

        """
        settings, wanted = self._checkpoint.processor_config, self._checkpoint.image_size
        resample = settings.get("resample")
        try:
            size = {"longest_edge": 980, "shortest_edge": 378, **(settings.get("size") or {}), **wanted}
            longest, shortest = int(size["longest_edge"]), int(size["shortest_edge"])
            if wanted:
                check_edges(longest, shortest, self.config.vision)
            return Idefics2ImageProcessor(
                longest,
                shortest,
                int(Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self._checkpoint.name}: the image processor's sizes: {error}") from error

    @functools.cached_property
    def normalization(self) -> Normalization:
        """How the image processor normalizes pixels."""
        settings = self._checkpoint.processor_config
        scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
        if not settings.get("do_normalize", True):
            return Normalization(scale, (0.0,) * 3, (1.0,) * 3)
        mean, std = (
            tuple(map(float, [given] * 3 if isinstance(given, int | float) else given))
            for given in (settings.get("image_mean") or 0.5, settings.get("image_std") or 0.5)
        )
        return Normalization(scale, mean, std)

    def prompt_builder(self, template: str) -> Idefics2PromptBuilder:
        """Return what builds prompts.

        Raises:
            ModelError: the tokenizer does not fit the model.
            UsageError: the template holds a special token.

        """
        return Idefics2PromptBuilder(self._checkpoint, self._tokenizer, self.config, template)

    def generation(self, settings: ModelSettings) -> GenerationRules:
        """Return how answers are generated.

        A checkpoint without chat turns goes on with what it has read: tokens that stand for images are never generated,
        whether its generation_config.json forbids them or not.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the checkpoint can't do what the user asks for.

        """
        is_base = not self._checkpoint.chat_template
        ids = (self.config.image_token_id, self._tokenizer.id_of(_FAKE)) if is_base else ()
        rules = GenerationRules.of(self._checkpoint, settings, [token for token in ids if token is not None])
        for text in rules.stop:
            if found := sorted(token for token in self._tokenizer.special_tokens if token in text):
                kind, name = (UsageError, "--stop") if text in settings.stop else (ModelError, "stop_strings")
                raise kind(f"{name} {text!r} holds the special token {found[0]}, which no answer's text does: drop it")
        if settings.choices is None:
            return rules
        prompts = self.prompt_builder(settings.prompt)
        choices = tuple(prompts.choice(text, rules.suppressed_tokens) for text in settings.choices)
        longest = max(len(tokens) for choice in choices for tokens in choice.tokens)
        return dataclasses.replace(rules, choices=choices, max_new_tokens=longest + 1)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Read once: the template is checked before the weights are loaded, and used after."""
        return Tokenizer(self._checkpoint)

    def check_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the names and shapes of a checkpoint's weights.

        Raises:
            ModelError: weights are missing or of another shape, or there are some that the settings have no place for.

        """
        wanted, given = self.config.weight_shapes(), dict(shapes)
        if self.config.tie_word_embeddings:
            given.pop("lm_head.weight", None)
        extra = sorted(name for name in given.keys() - wanted.keys() if not _HARMLESS_WEIGHTS.fullmatch(name))
        other = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
        for words, found in (
            ("lacks", sorted(wanted.keys() - given.keys())),
            ("has no place in its config.json for", extra),
            ("has in its config.json another shape for", other),
        ):
            if found:
                raise ModelError(
                    f"{self._checkpoint.name}: the checkpoint {words} {len(found)} weights, {found[0]} among them"
                )


class Idefics2PromptBuilder(AnswerText):
    """Builds prompts with a checkpoint's own template and tokenizer."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, config: Idefics2Config, template: str) -> None:
        """Take the tokenizer; see `Idefics2Family.prompt_builder`."""
        super().__init__(tokenizer)
        self._name, self._image_seq_len = checkpoint.name, config.perceiver.num_latents
        self._special_tokens = self._tokenizer.special_tokens | {_IMAGE, _FAKE}
        chat = ChatTemplate(checkpoint.chat_template, checkpoint.name) if checkpoint.chat_template else None
        self._form = PromptForm(chat, template, _IMAGE)
        self._shared_tokens = functools.lru_cache(1)(self._tokens_of_shared)
        self._closing = re.compile(rf"{re.escape(_FAKE)}(?=[^\s<])")
        found = sorted(token for token in self._special_tokens if token in template)
        if found:
            raise UsageError(f"--prompt holds the model's special token {found[0]}; images are put in by themselves")
        self._image_id = self._tokenizer.id_of(_IMAGE)
        if self._image_id != config.image_token_id:
            raise ModelError(
                f"{checkpoint.name}: {_IMAGE} is token {self._image_id} of the tokenizer and "
                f"{config.image_token_id} of the model"
            )

    def build(self, turns: Sequence[Turn], crops: Sequence[int], shared_turns: int = 0) -> Prompt:
        """See `PromptBuilder`."""
        check_turns(turns, self._special_tokens)
        if not crops:
            raise RowFailedError(FailureKind.BAD_QUESTION, "there is no page in the conversation")
        tokens = self._tokenizer.encode(self._expanded(self._form.words(turns), crops))
        last = max(index for index, token in enumerate(tokens) if token == self._image_id)
        # The closing fake token belongs to the prefix; at least one token is left behind it.
        prefix_length = min(last + 2, len(tokens) - 1)
        if not shared_turns:
            return Prompt(tuple(tokens), prefix_length)
        pages = sum(isinstance(part, PagePart) for turn in turns[:shared_turns] for part in turn.content)
        shared = self._shared_tokens(tuple(turns[:shared_turns]), tuple(crops[:pages]))
        differ = (at for at, (one, other) in enumerate(zip(shared, tokens, strict=False)) if one != other)
        return Prompt(tuple(tokens), prefix_length, min(next(differ, len(shared)), prefix_length - 1))

    def _tokens_of_shared(self, turns: tuple[Turn, ...], crops: tuple[int, ...]) -> list[int]:
        """Return the tokens of turns at the start of a prompt; the last few may be others where it goes on."""
        return self._tokenizer.encode(self._expanded(self._form.words(turns, is_open=False), crops))

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt, as the tokenizer writes it there.

        Raises:
            UsageError: it can't be written.

        """
        return self.choice_behind(self._form.words(plain_turns("?", 0)), text, suppressed_tokens)

    def _expanded(self, words: str, crops: Sequence[int]) -> str:
        """Expand each image to its tokens, by the rules of transformers' processor but page by page.

        An image is a fake token, its image tokens, a fake token; between adjacent images one fake token stands; a space
        parts the closing fake token from a word.
        """
        one = _FAKE + _IMAGE * self._image_seq_len + _FAKE
        head, *rest = words.split(_IMAGE)
        if len(rest) != len(crops):
            raise ModelError(
                f"{self._name}: the chat template writes {len(rest)} images where {len(crops)} were asked for"
            )
        expanded = head + "".join(one * count + after for count, after in zip(crops, rest, strict=True))
        return self._closing.sub(f"{_FAKE} ", expanded.replace(_FAKE * 2, _FAKE))
