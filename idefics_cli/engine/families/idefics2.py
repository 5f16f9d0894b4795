"""Idefics2: its images, its prompts, and the shapes of its weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.base import (
    DecoderConfig,
    GenerationRules,
    Normalization,
    PerceiverConfig,
    Prompt,
    VisionConfig,
    decoder_config,
)
from idefics_cli.engine.families.prompt import ChatTemplate, Tokenizer, check_question
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Crop

_IMAGE, _FAKE = "<image>", "<fake_token_around_image>"
_PERCEIVER_MLP = 4  # times its width
_HARMLESS_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")


@dataclass(frozen=True, slots=True)
class Idefics2ImageProcessor:
    """Cuts pages into crops, pixel for pixel as the Pillow image processor of transformers does."""

    longest_edge: int
    """Of one image, in pixels; what is longer is scaled down."""
    shortest_edge: int
    resample: int = int(Image.Resampling.BILINEAR)
    """A Pillow resampling filter."""

    def render_edge(self, *, split: bool) -> int:
        """Return the longest edge, in pixels, at which a page is rendered: more than this would be scaled away."""
        return self.longest_edge * (2 if split else 1)

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        """Return the crops of an RGB page: itself, or its four quarters and itself when split.

        The quarters are cut from the page as it comes, and each image is then brought within the limits.
        """
        images = [page]
        if split:
            width, height = page.size
            middle_x, middle_y = width // 2, height // 2
            images = [
                page.crop((0, 0, middle_x, middle_y)),
                page.crop((middle_x, 0, width, middle_y)),
                page.crop((0, middle_y, middle_x, height)),
                page.crop((middle_x, middle_y, width, height)),
                page,
            ]
        return tuple(self._limited(image) for image in images)

    def limited_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height of an image within the longest and shortest edge.

        The order of operations is that of `get_resize_output_image_size` in transformers' Idefics2 image processor:
        a very long image is stretched to the shortest edge.
        """
        ratio = width / height
        if width >= height and width > self.longest_edge:
            width = self.longest_edge
            height = int(width / ratio)
        elif height > width and height > self.longest_edge:
            height = self.longest_edge
            width = int(height * ratio)
        return max(width, self.shortest_edge), max(height, self.shortest_edge)

    def _limited(self, image: Image.Image) -> Crop:
        if 0 in image.size:  # a quarter of a page one pixel wide
            image = Image.new("RGB", (max(1, image.width), max(1, image.height)), "white")
        size = self.limited_size(image.width, image.height)
        if size != image.size:
            image = image.resize(size, Image.Resampling(self.resample))
        return np.asarray(image)


@dataclass(frozen=True, slots=True)
class Idefics2Config:
    """Sizes of the vision tower, the perceiver and the text model."""

    vision: VisionConfig
    perceiver: PerceiverConfig
    text: DecoderConfig
    image_token_id: int
    tie_word_embeddings: bool
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Idefics2Config:
        """Read config.json; what it leaves out has the defaults of transformers' Idefics2 configurations.

        Raises:
            ModelError: a setting is of the wrong kind.

        """
        text, gaps = decoder_config(values.get("text_config") or {}, name)
        try:
            vision, perceiver = values.get("vision_config") or {}, values.get("perceiver_config") or {}
            patch = int(vision.get("patch_size", 32))
            activations = (
                ("vision hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
                ("perceiver hidden_act", perceiver.get("hidden_act", "silu"), "silu"),
            )
            return cls(
                VisionConfig(
                    hidden_size=int(vision.get("hidden_size", 768)),
                    intermediate_size=int(vision.get("intermediate_size", 3072)),
                    num_layers=int(vision.get("num_hidden_layers", 12)),
                    num_heads=int(vision.get("num_attention_heads", 12)),
                    patch_size=patch,
                    positions=int(vision.get("image_size", 224)) // patch,
                    eps=float(vision.get("layer_norm_eps", 1e-6)),
                ),
                PerceiverConfig(
                    num_latents=int(perceiver.get("resampler_n_latents", 64)),
                    num_layers=int(perceiver.get("resampler_depth", 3)),
                    num_heads=int(perceiver.get("resampler_n_heads", 16)),
                    num_kv_heads=int(perceiver.get("num_key_value_heads", 4)),
                    head_dim=int(perceiver.get("resampler_head_dim", 96)),
                    # transformers takes the text model's where the widths differ, as when they are left out
                    eps=float(perceiver.get("rms_norm_eps", 1e-6))
                    if int(perceiver.get("hidden_size", 4096)) == text.hidden_size
                    else text.eps,
                ),
                text,
                image_token_id=int(values.get("image_token_id", 32001)),
                tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
                gaps=gaps + tuple(f"{what} {given}" for what, given, native in activations if given != native),
            )
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise ModelError(f"{name}: config.json: {error}") from error

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by the name that the published checkpoints give it."""
        vision, perceiver, text = self.vision, self.perceiver, self.text
        shapes: dict[str, tuple[int, ...]] = {
            "model.text_model.embed_tokens.weight": (text.vocab_size, text.hidden_size),
            "model.text_model.norm.weight": (text.hidden_size,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
        tower = "model.vision_model."
        shapes[tower + "embeddings.patch_embedding.weight"] = (vision.hidden_size, 3, *(vision.patch_size,) * 2)
        shapes[tower + "embeddings.patch_embedding.bias"] = (vision.hidden_size,)
        shapes[tower + "embeddings.position_embedding.weight"] = (vision.positions**2, vision.hidden_size)
        for norm in ("weight", "bias"):
            shapes[f"{tower}post_layernorm.{norm}"] = (vision.hidden_size,)
        for layer in range(vision.num_layers):
            shapes |= _tower_layer(f"{tower}encoder.layers.{layer}.", vision)
        projection = "model.connector.modality_projection."
        shapes |= _gated_mlp(projection, vision.hidden_size, text.intermediate_size, text.hidden_size)
        resampler = "model.connector.perceiver_resampler."
        shapes[resampler + "latents"] = (perceiver.num_latents, text.hidden_size)
        shapes[resampler + "norm.weight"] = (text.hidden_size,)
        for layer in range(perceiver.num_layers):
            shapes |= _perceiver_layer(f"{resampler}layers.{layer}.", perceiver, text.hidden_size)
        for layer in range(text.num_layers):
            shapes |= _decoder_layer(f"model.text_model.layers.{layer}.", text)
        return shapes


class Idefics2Family:
    """An Idefics2 checkpoint, as far as torch is not needed to know it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read its settings.

        Raises:
            ModelError: they ask for something that this tool does not do, or contradict one another.

        """
        self._checkpoint = checkpoint
        self.config = Idefics2Config.of(checkpoint.config, checkpoint.name)
        rules = GenerationRules.of(checkpoint)
        self.eos_token_ids, self.suppressed_tokens = rules.eos_token_ids, rules.suppressed_tokens
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
        self.native_gaps = self.config.gaps + rules.gaps + (("clean_up_tokenization_spaces",) if cleanup else ())

    @functools.cached_property
    def image_processor(self) -> Idefics2ImageProcessor:
        """The sizes of the checkpoint's image processor."""
        settings = self._checkpoint.processor_config
        size = settings.get("size") or {}
        resample = settings.get("resample")
        try:
            return Idefics2ImageProcessor(
                int(size.get("longest_edge", 980)),
                int(size.get("shortest_edge", 378)),
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
        return Idefics2PromptBuilder(self._checkpoint, self.config, template)

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


class Idefics2PromptBuilder:
    """Builds prompts with a checkpoint's own template and tokenizer."""

    def __init__(self, checkpoint: Checkpoint, config: Idefics2Config, template: str) -> None:
        """Take the tokenizer; see `Idefics2Family.prompt_builder`."""
        self._tokenizer, self._template = Tokenizer(checkpoint), template
        self._image_seq_len = config.perceiver.num_latents
        self._special_tokens = self._tokenizer.special_tokens | {_IMAGE, _FAKE}
        self._chat = ChatTemplate(checkpoint.chat_template, checkpoint.name) if checkpoint.chat_template else None
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

    def build(self, question: str, crops: Sequence[int]) -> Prompt:
        """See `PromptBuilder`."""
        check_question(question, self._special_tokens)
        text = self._template.replace("{question}", question)
        tokens = self._tokenizer.encode(self._expanded(self._words(text, len(crops)), crops))
        last = max(index for index, token in enumerate(tokens) if token == self._image_id)
        # The closing fake token belongs to the prefix; at least one token is left behind it.
        return Prompt(tuple(tokens), min(last + 2, len(tokens) - 1))

    def decode(self, tokens: Sequence[int]) -> str:
        """See `PromptBuilder`."""
        return self._tokenizer.decode(tokens).strip()

    def _words(self, text: str, images: int) -> str:
        """Chat checkpoints get a user's turn, base checkpoints the images and the text."""
        if self._chat is None:
            return _IMAGE * images + text
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        return self._chat.render([{"role": "user", "content": content}])

    def _expanded(self, words: str, crops: Sequence[int]) -> str:
        """Expand each image to its tokens, by the rules of transformers' processor but page by page.

        An image is a fake token, its image tokens, a fake token; between adjacent images one fake token stands; a space
        parts the closing fake token from a word.
        """
        one = _FAKE + _IMAGE * self._image_seq_len + _FAKE
        head, *rest = words.split(_IMAGE)
        expanded = head + "".join(one * count + after for count, after in zip(crops, rest, strict=True))
        return self._closing.sub(f"{_FAKE} ", expanded.replace(_FAKE * 2, _FAKE))


def _tower_layer(prefix: str, config: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    products = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    for name, shape in {**products, "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.items():
        shapes[f"{prefix}{name}.weight"], shapes[f"{prefix}{name}.bias"] = shape, shape[:1]
    for norm in ("layer_norm1", "layer_norm2"):
        shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (width,)
    return shapes


def _gated_mlp(prefix: str, width: int, inner: int, out: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (out, inner),
    }


def _attention(prefix: str, width: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}self_attn.q_proj.weight": (heads * head_dim, width),
        f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}self_attn.o_proj.weight": (width, heads * head_dim),
    }


def _perceiver_layer(prefix: str, config: PerceiverConfig, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= _gated_mlp(f"{prefix}mlp.", width, _PERCEIVER_MLP * width, width)
    for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes


def _decoder_layer(prefix: str, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    shapes = _attention(prefix, width, config.num_heads, config.num_kv_heads, config.head_dim)
    shapes |= _gated_mlp(f"{prefix}mlp.", width, config.intermediate_size, width)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{prefix}{norm}.weight"] = (width,)
    return shapes
