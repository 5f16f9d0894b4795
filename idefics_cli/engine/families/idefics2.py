"""Idefics2: its prompts, and what its checkpoints ask for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.backend import check_stop, with_choices
from idefics_cli.engine.families.base import Normalization
from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.families.idefics2_config import Idefics2Config
from idefics_cli.engine.families.idefics2_images import Idefics2ImageProcessor, check_edges
from idefics_cli.engine.families.image_prompt import FAKE, IMAGE, ImagePromptBuilder
from idefics_cli.engine.families.model_config import check_shapes
from idefics_cli.engine.families.pixels import normalization_of
from idefics_cli.engine.families.prompt import Tokenizer
from idefics_cli.errors import ModelError

__all__ = ["Idefics2Config", "Idefics2Family", "Idefics2ImageProcessor", "Idefics2PromptBuilder"]

_CLOSING = re.compile(rf"{re.escape(FAKE)}(?=[^\s<])")


class Idefics2Family:
    """An Idefics2 checkpoint, as far as torch is not needed to know it."""

    warning = split_refusal = chat_refusal = examples_refusal = ""
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
    def image_edge(self) -> int:
        """Longest edge of a crop, in pixels."""
        return max(self.image_processor.longest_edge, self.image_processor.shortest_edge)

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
        return normalization_of(self._checkpoint.processor_config)

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
        ids = (self.config.image_token_id, self._tokenizer.id_of(FAKE)) if is_base else ()
        rules = GenerationRules.of(self._checkpoint, settings, [token for token in ids if token is not None])
        check_stop(rules, settings, self._tokenizer.special_tokens)
        return with_choices(rules, settings, self.prompt_builder)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Read once: the template is checked before the weights are loaded, and used after."""
        return Tokenizer(self._checkpoint)

    def check_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the names and shapes of a checkpoint's weights.

        Raises:
            ModelError: weights are missing or of another shape, or there are some that the settings have no place for.

        """
        check_shapes(self.config, shapes, self._checkpoint.name)


class Idefics2PromptBuilder(ImagePromptBuilder):
    """Builds prompts with a checkpoint's own template and tokenizer."""

    def _page(self, crops: int, columns: int) -> str:  # noqa: ARG002 - prompts do not say where a quarter stands
        """Return what stands for a page: each image is a fake token, its image tokens, a fake token."""
        return (FAKE + IMAGE + FAKE) * crops

    def _expanded(self, words: str, crops: Sequence[int], columns: Sequence[int]) -> str:
        """Expand each image to its tokens, by the rules of transformers' processor but page by page.

        Between adjacent images one fake token stands; a space parts the closing fake token from a word.
        """
        return _CLOSING.sub(f"{FAKE} ", super()._expanded(words, crops, columns).replace(FAKE * 2, FAKE))
