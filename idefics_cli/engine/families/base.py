"""What an engine asks of a family of checkpoints; the shapes of transformers and towers that families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from idefics_cli.documents.page import ImageProcessor
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.errors import ModelError


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


class PromptBuilder(Protocol):
    """Puts questions into the words and tokens that a checkpoint was trained with."""

    def build(self, question: str, crops: Sequence[int]) -> Prompt:
        """Return the prompt of a question about pages of so many crops each.

        Raises:
            RowFailedError: the question holds one of the model's special tokens, such as `<image>`.

        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens: special tokens left out, spaces around it stripped."""


class Family(Protocol):
    """A kind of checkpoint, as far as torch is not needed to know it."""

    @property
    def image_processor(self) -> ImageProcessor:
        """Makes crops of pages."""

    @property
    def native_gaps(self) -> tuple[str, ...]:
        """What the checkpoint asks for that the native engine does not do; with any, transformers runs it."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def suppressed_tokens(self) -> frozenset[int]:
        """Tokens that are never generated."""

    def prompt_builder(self, template: str) -> PromptBuilder:
        """Return what builds prompts; `template` holds `{question}`."""


_GENERATION_GAPS: Mapping[str, tuple[Any, ...]] = {
    # what a generation config may ask for, and the values that ask for nothing
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}, []),
    "guidance_scale": (None, 1, 1.0),
    "renormalize_logits": (None, False, True),  # the greedy choice is the same
    "remove_invalid_values": (None, False),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "stop_strings": (None, []),
    "constraints": (None, []),
    "force_words_ids": (None, []),
}


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """What a checkpoint's generation settings ask of greedy decoding."""

    eos_token_ids: frozenset[int]
    suppressed_tokens: frozenset[int]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> GenerationRules:
        """Read them; sampling settings do not matter, since decoding is greedy.

        Raises:
            ModelError: they can't be understood.

        """
        settings = checkpoint.generation_config or _settings_of_config(checkpoint.config)
        ends = settings.get("eos_token_id")
        try:
            eos = frozenset([int(ends)] if isinstance(ends, int) else map(int, ends or ()))
            words = [tuple(map(int, word)) for word in settings.get("bad_words_ids") or ()]
            suppressed = {int(token) for token in settings.get("suppress_tokens") or ()}
        except (TypeError, ValueError) as error:
            raise ModelError(f"{checkpoint.name}: generation_config.json: {error}") from error
        # As in transformers, a bad word that is an end token is not one.
        suppressed |= {word[0] for word in words if len(word) == 1 and word[0] not in eos}
        gaps = [
            f"{name} {settings[name]}"
            for name, harmless in _GENERATION_GAPS.items()
            if name in settings and settings[name] not in harmless
        ]
        gaps += ["bad_words_ids of several tokens"] if any(len(word) > 1 for word in words) else []
        return cls(eos, frozenset(suppressed), tuple(gaps))


def _settings_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings that older checkpoints hold in config.json, as transformers takes them."""
    settings: dict[str, Any] = {"eos_token_id": 2}  # MistralConfig's
    for part in (config.get("text_config") or {}, config):
        settings |= {name: value for name, value in part.items() if value is not None}
    return settings


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
