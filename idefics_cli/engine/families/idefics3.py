"""Idefics3, SmolVLM and SmolVLM2: their prompts, and what their checkpoints ask for. Videos are left out."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from PIL import Image

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.backend import backend_rules, with_choices
from idefics_cli.engine.families.base import Normalization
from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.engine.families.idefics3_config import Idefics3Config
from idefics_cli.engine.families.idefics3_images import MOST_EDGE, Idefics3ImageProcessor, check_edge, check_tile
from idefics_cli.engine.families.image_prompt import FAKE, IMAGE, ImagePromptBuilder
from idefics_cli.engine.families.model_config import check_shapes
from idefics_cli.engine.families.pixels import normalization_of
from idefics_cli.engine.families.prompt import Tokenizer
from idefics_cli.errors import ModelError, UsageError

MODEL_TYPES = ("idefics3", "smolvlm")
_WHOLE = "<global-img>"


class Idefics3Family:
    """An Idefics3 or SmolVLM checkpoint, as far as torch is not needed to know it."""

    warning = split_refusal = chat_refusal = examples_refusal = ""
    notes: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read its settings.

        Raises:
            ModelError: they ask for something that this tool does not do, or contradict one another.
            UsageError: pages can't have the size that the user wants.

        """
        self._checkpoint = checkpoint
        settings, images = checkpoint.processor_config, self.image_processor
        if settings.get("do_resize") is False:
            raise ModelError(f"{checkpoint.name}: an image processor that does not resize (do_resize) is not supported")
        tiles = math.ceil(min(images.page_edge, MOST_EDGE) / images.tile)
        self.config = Idefics3Config.of(checkpoint.config, checkpoint.name, tile=images.tile, tiles=tiles)
        try:
            check_tile(images.tile, self.config.scale_factor, self.config.vision)
        except (ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{checkpoint.name}: {error}") from error
        tokens = self.config.image_seq_len
        if int(settings.get("image_seq_len", tokens)) != tokens:
            raise ModelError(
                f"{checkpoint.name}: image_seq_len {settings['image_seq_len']} of the processor is not the model's "
                f"number of tokens for a tile, {tokens}"
            )
        self.native_gaps = self.config.gaps

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.config.text.max_positions

    @property
    def image_edge(self) -> int:
        """Longest edge of a crop, in pixels."""
        return self.image_processor.tile

    @functools.cached_property
    def image_processor(self) -> Idefics3ImageProcessor:
        """The sizes of the checkpoint's image processor; the longest edge of a page may be the user's.

        Raises:
            ModelError: the checkpoint's can't be understood.
            UsageError: the user's is out of range.

        """
        settings, wanted = self._checkpoint.processor_config, self._checkpoint.image_size
        if "shortest_edge" in wanted:
            raise UsageError(
                f"{self._checkpoint.name}: --shortest-edge is for idefics2 checkpoints; this one cuts pages into tiles"
            )
        resample = settings.get("resample")
        try:
            tile = int((settings.get("max_image_size") or {}).get("longest_edge", 364))
            size = settings.get("size") or {}
            edge = int(size["longest_edge"] if size else 4 * 364)
            if wanted:
                edge = wanted["longest_edge"]
                check_edge(edge, tile)
            if min(edge, tile) < 1:
                raise ValueError(f"{min(edge, tile)} is not above 0")
            kind = Image.Resampling.LANCZOS if resample is None else Image.Resampling(int(resample))
            return Idefics3ImageProcessor(edge, tile, int(kind))
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise ModelError(f"{self._checkpoint.name}: the image processor's sizes: {error}") from error

    @functools.cached_property
    def normalization(self) -> Normalization:
        """How the image processor normalizes pixels."""
        return normalization_of(self._checkpoint.processor_config)

    def prompt_builder(self, template: str) -> Idefics3PromptBuilder:
        """Return what builds prompts.

        Raises:
            ModelError: the tokenizer does not fit the model.
            UsageError: the template holds a special token.

        """
        return Idefics3PromptBuilder(self._checkpoint, self._tokenizer, self.config, template)

    def generation(self, settings: ModelSettings) -> GenerationRules:
        """Return how answers are generated: tokens that stand for images never are.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the checkpoint can't do what the user asks for.

        """
        ids = (self.config.image_token_id, self._tokenizer.id_of(FAKE))
        image_tokens = [token for token in ids if token is not None]
        rules = backend_rules(self._checkpoint, settings, self._tokenizer, image_tokens)
        return with_choices(rules, settings, self.prompt_builder)

    def check_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See `NativeFamily`."""
        check_shapes(self.config, shapes, self._checkpoint.name)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Read once: the template is checked before the weights are loaded, and used after."""
        return Tokenizer(self._checkpoint)


class Idefics3PromptBuilder(ImagePromptBuilder):
    """Builds prompts with a checkpoint's own template and tokenizer."""

    def _page(self, crops: int, columns: int) -> str:
        """Return what stands for a page, by the rules of transformers' processor.

        A tile is a fake token, the mark of its row and column, its image tokens; a row ends in a new line. The whole
        page follows behind another new line, between fake tokens.
        """
        whole = f"{FAKE}{_WHOLE}{IMAGE}{FAKE}"
        if crops == 1:
            return whole
        rows, rest = divmod(crops - 1, max(1, columns))
        if not columns or rest:
            raise ModelError(f"{self._name}: {crops - 1} tiles do not stand in {columns} columns")
        marks = (
            "".join(f"{FAKE}<row_{row}_col_{column}>{IMAGE}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        )
        return "".join(f"{row}\n" for row in marks) + f"\n{whole}"
