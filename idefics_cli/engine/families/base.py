"""What an engine asks of a family of checkpoints; shapes of transformers and vision encoders that families share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from idefics_cli.config import ModelSettings
from idefics_cli.documents.page import ImageProcessor
from idefics_cli.engine.families.answer_text import AnswerReader
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.records import Turn


@dataclass(frozen=True, slots=True)
class Normalization:
    """From uint8 to what the vision encoder takes: (value * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A SigLIP encoder."""

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
class RopeScaling:
    """How Llama 3.1 stretches the rotary embedding beyond the positions it was trained with (rope_type llama3)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


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
    rope_scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a request, image tokens expanded."""

    tokens: tuple[int, ...]
    prefix_length: int
    """Tokens up to the end of the last image, which requests about the same pages have in common."""
    shared_length: int = 0
    """Tokens of the prefix that requests about other pages begin with too: those of the examples."""


class PromptBuilder(AnswerReader, Protocol):
    """Puts questions into the words and tokens that a checkpoint was trained with."""

    def build(
        self, turns: Sequence[Turn], crops: Sequence[int], shared_turns: int = 0, columns: Sequence[int] = ()
    ) -> Prompt:
        """Return the prompt of a conversation, up to where its next answer begins.

        Args:
            turns: of texts and pages; the last is the user's.
            crops: how many images each of the pages is, in their order.
            shared_turns: how many turns at the start other requests begin with too.
            columns: in how many columns each page's sub-images stand; empty where prompts do not say so.

        Raises:
            RowFailedError: a text holds one of the model's special tokens, such as `<image>`, or the checkpoint's
                template does not take these turns.

        """

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt.

        Raises:
            UsageError: it can't be written.

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

    @property
    def chat_refusal(self) -> str:
        """Why questions can't go on after an answer; empty where they can."""

    @property
    def examples_refusal(self) -> str:
        """Why examples can't stand before a question; empty where they can."""

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


class ModelConfig(Protocol):
    """Sizes of a model of the native engine: a SigLIP encoder, a connector, a text model of the Llama kind."""

    @property
    def vision(self) -> VisionConfig:
        """The vision encoder."""

    @property
    def text(self) -> DecoderConfig:
        """The text model."""

    @property
    def image_token_id(self) -> int:
        """The token that image features take the place of."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding."""

    @property
    def image_seq_len(self) -> int:
        """Image tokens of a crop."""

    @property
    def max_crops(self) -> int:
        """Images that a page is read as, at most."""

    @property
    def page_tokens(self) -> int:
        """Tokens of a page in a prompt, at most."""

    @property
    def context_width(self) -> int:
        """Numbers that the connector keeps of a patch until all patches of a page are projected."""

    @property
    def projection_width(self) -> int:
        """Numbers of a patch that exist at once in the connector's projection."""

    def connector_products(self, patches: int) -> int:
        """Return the multiplications of the connector for a crop of so many patches."""

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by the name that the published checkpoints give it."""


class NativeFamily(PromptFamily, Protocol):
    """A family that the native engine runs."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""

    @property
    def image_edge(self) -> int:
        """Longest edge of a crop, in pixels."""

    def check_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the names and shapes of a checkpoint's weights.

        Raises:
            ModelError: weights are missing or of another shape, or there are some that the settings have no place for.

        """
