"""What an engine asks of a family of checkpoints; the shapes of transformers and towers that families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from idefics_cli.config import ModelSettings
from idefics_cli.documents.page import ImageProcessor
from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.errors import ModelError
from idefics_cli.records import Turn


@dataclass(frozen=True, slots=True)
class Normalization:
    """From uint8 to what the vision tower takes: (value * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A SigLIP tower."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    positions: int
    """Position embeddings a side."""
    eps: float


@dataclass(frozen=True, slots=True)
class PerceiverConfig:
    """The resampler that turns the patches of a crop into latents."""

    num_latents: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A text model of the Llama kind."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    max_positions: int
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a request, image tokens expanded."""

    tokens: tuple[int, ...]
    prefix_length: int
    """Tokens up to the end of the last image, which requests about the same pages have in common."""
    shared_length: int = 0
    """Tokens of the prefix that requests about other pages begin with too: those of the examples."""


class AnswerReader(Protocol):
    """Reads the tokens of answers."""

    def decode(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return the text of an answer's tokens: special tokens left out, spaces around it stripped.

        Args:
            tokens: of the answer.
            stop: texts before the first of which it is cut.

        """

    def has_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the text of an answer's tokens holds one of these texts."""


class PromptBuilder(AnswerReader, Protocol):
    """Puts questions into the words and tokens that a checkpoint was trained with."""

    def build(self, turns: Sequence[Turn], crops: Sequence[int], shared_turns: int = 0) -> Prompt:
        """Return the prompt of a conversation, up to where its next answer begins.

        Args:
            turns: of texts and pages; the last is the user's.
            crops: how many images each of the pages is, in their order.
            shared_turns: how many turns at the start other requests begin with too.

        Raises:
            RowFailedError: a text holds one of the model's special tokens, such as `<image>`, or the checkpoint's
                template does not take these turns.

        """


class Family(Protocol):
    """A kind of checkpoint, as far as torch is not needed to know it."""

    @property
    def image_processor(self) -> ImageProcessor:
        """Makes crops of pages."""

    @property
    def native_gaps(self) -> tuple[str, ...]:
        """What of the model the native engine does not do; with any, transformers runs it.

        `GenerationRules.gaps` are to be added.
        """

    @property
    def max_positions(self) -> float:
        """Most tokens of a prompt and its answer; infinity where the checkpoint does not say."""

    @property
    def warning(self) -> str:
        """What every answer should be read with; empty for nothing."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user is told once, at the start."""

    @property
    def split_refusal(self) -> str:
        """Why pages are never split; empty where they may be."""

    def generation(self, settings: ModelSettings) -> GenerationRules:
        """Return how answers are generated.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the checkpoint can't do what the user asks for.

        """

    def prompt_builder(self, template: str) -> AnswerReader:
        """Return what knows the words of questions and answers; `template` holds `{question}`."""


class PromptFamily(Family, Protocol):
    """A family whose prompts and pixels are made here, not by the checkpoint's own processor."""

    @property
    def normalization(self) -> Normalization:
        """How pixels are normalized."""

    def prompt_builder(self, template: str) -> PromptBuilder:
        """Return what builds prompts; `template` holds `{question}`."""


def decoder_config(values: Mapping[str, Any], name: str) -> tuple[DecoderConfig, tuple[str, ...]]:
    """Read a text model's settings; returns them, and what of them the native engine does not do.

    Settings that a file leaves out have the defaults of transformers' MistralConfig.

    Raises:
        ModelError: a setting is missing or of the wrong kind.

    """
    try:
        heads, hidden = int(values.get("num_attention_heads", 32)), int(values.get("hidden_size", 4096))
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
        window = values.get("sliding_window", 4096)
        config = DecoderConfig(
            vocab_size=int(values.get("vocab_size", 32000)),
            hidden_size=hidden,
            intermediate_size=int(values.get("intermediate_size", 14336)),
            num_layers=int(values.get("num_hidden_layers", 32)),
            num_heads=heads,
            num_kv_heads=int(values.get("num_key_value_heads") or 8),
            head_dim=int(values.get("head_dim") or hidden // heads),
            eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
            max_positions=int(values.get("max_position_embeddings", 4096 * 32)),
            sliding_window=int(window) if window else None,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{name}: config.json: text_config: {error}") from error
    kind, activation = values.get("model_type", "mistral"), values.get("hidden_act", "silu")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    gaps = []
    if kind != "mistral":
        gaps.append(f"text model {kind}")
    if activation != "silu":
        gaps.append(f"text hidden_act {activation}")
    if rope_type != "default":
        gaps.append(f"rope_type {rope_type}")
    if values.get("attention_bias") or values.get("mlp_bias"):
        gaps.append("biases in the text model")
    if values.get("layer_types"):
        gaps.append("layer_types")
    return config, tuple(gaps)
