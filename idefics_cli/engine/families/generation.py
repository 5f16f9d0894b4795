"""How the answers of a checkpoint are generated: by what the user asks for, else by what the checkpoint does."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.config import GenerationSettings
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.errors import FailureKind, ModelError, RowFailedError, UsageError
from idefics_cli.records import Generation

_SHORT_ANSWERS, _LONG_ANSWERS = 64, 512
_GAPS: Mapping[str, tuple[Any, ...]] = {
    # what a generation config may ask for that only transformers does, and the values that ask for nothing
    "encoder_repetition_penalty": (None, 1, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "forced_bos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}, []),
    "guidance_scale": (None, 1, 1.0),
    "renormalize_logits": (None, False, True),  # the greedy choice is the same
    "remove_invalid_values": (None, False),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "constraints": (None, []),
    "force_words_ids": (None, []),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers that a question may have."""

    text: str
    tokens: tuple[tuple[int, ...], ...]
    """The ways to write it behind a prompt, end token left out: with a space before it, and without."""


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """What is done to logits, which token is taken, and what ends an answer; the names are those of transformers."""

    max_new_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    suppressed_tokens: frozenset[int] = frozenset()
    """Tokens that are never generated."""
    begin_suppressed_tokens: frozenset[int] = frozenset()
    """Tokens that no answer begins with."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Words of two tokens or more that are never generated."""
    min_new_tokens: int = 0
    min_length: int = 0
    """Least tokens of prompt and answer together."""
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_eos_token_ids: frozenset[int] = frozenset()
    """What the last of `max_new_tokens` is taken from."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    gaps: tuple[str, ...] = ()
    """What the native engine does not do."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: GenerationSettings, image_tokens: Collection[int]) -> GenerationRules:
        """Join what the user asks for and what the checkpoint does.

        A checkpoint's own sampling (`do_sample`, `temperature` ...) does not matter: sampling is asked for.

        Args:
            checkpoint: whose generation_config.json, else config.json, is read.
            settings: of the user, which come first.
            image_tokens: stand for images in prompts, and never in answers.

        Raises:
            ModelError: the checkpoint's settings can't be understood.
            UsageError: the settings ask for longer answers than they allow.

        """
        values = checkpoint.generation_config or _settings_of_config(checkpoint.config)
        try:
            rules = cls._of_values(checkpoint, values, settings, frozenset(image_tokens))
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"{checkpoint.name}: generation_config.json: {error}") from error
        if (settings.min_new_tokens or 0) > rules.max_new_tokens:
            raise UsageError(
                f"--min-new-tokens {settings.min_new_tokens} is more than the longest answer, "
                f"--max-new-tokens {rules.max_new_tokens}"
            )
        return rules

    def for_request(self, wanted: Generation | None) -> GenerationRules:
        """Return the rules of one request, which may want a few things otherwise.

        Raises:
            RowFailedError: answers are choices here, which nothing goes with.

        """
        if wanted is None:
            return self
        if self.choices:
            words = "answers are those of --choices: a request has no max_tokens, temperature or stop of its own"
            raise RowFailedError(FailureKind.BAD_QUESTION, words)
        temperature = self.temperature if wanted.temperature is None else wanted.temperature
        return dataclasses.replace(
            self,
            max_new_tokens=wanted.max_new_tokens or self.max_new_tokens,
            temperature=temperature,
            top_p=_first(wanted.top_p, self.top_p) if temperature else 1.0,
            seed=_first(wanted.seed, self.seed),
            stop=wanted.stop + self.stop,
        )

    @classmethod
    def _of_values(
        cls,
        checkpoint: Checkpoint,
        values: Mapping[str, Any],
        settings: GenerationSettings,
        image_tokens: frozenset[int],
    ) -> GenerationRules:
        eos = _ids(values.get("eos_token_id"))
        # As in transformers, a bad word that is an end token is not one.
        words = [tuple(_in_order(word)) for word in _in_order(values.get("bad_words_ids"), list)]
        bad = frozenset(word[0] for word in words if len(word) == 1 and word[0] not in eos)
        own_least = values.get("min_new_tokens") if settings.min_new_tokens is None else settings.min_new_tokens
        beams = int(_first(settings.num_beams, values.get("num_beams"), 1))
        penalty = float(_first(settings.repetition_penalty, values.get("repetition_penalty"), 1.0))
        if penalty <= 0:
            raise ValueError(f"repetition_penalty {penalty} is not above 0")
        stop = values.get("stop_strings") or ()
        return cls(
            max_new_tokens=settings.max_new_tokens or _default_max_new_tokens(checkpoint, values),
            eos_token_ids=eos,
            suppressed_tokens=_listed(values.get("suppress_tokens")) | bad | image_tokens,
            begin_suppressed_tokens=_listed(values.get("begin_suppress_tokens")),
            bad_words=tuple(word for word in words if len(word) > 1),
            min_new_tokens=int(own_least or 0),
            min_length=int(values.get("min_length") or 0) if own_least is None else 0,
            repetition_penalty=penalty,
            no_repeat_ngram_size=max(0, int(values.get("no_repeat_ngram_size") or 0)),
            forced_eos_token_ids=_ids(values.get("forced_eos_token_id")),
            temperature=settings.temperature or 0.0,
            top_p=_first(settings.top_p, 1.0),
            seed=settings.seed or 0,
            num_beams=beams,
            stop=settings.stop + tuple(filter(None, map(str, (stop,) if isinstance(stop, str) else stop))),
            gaps=_gaps(values, beams) if settings.choices is None else (),
        )


def _gaps(values: Mapping[str, Any], beams: int) -> tuple[str, ...]:
    gaps = [
        f"{name} {values[name]}" for name, harmless in _GAPS.items() if name in values and values[name] not in harmless
    ]
    return (*gaps, f"num_beams {beams}") if beams > 1 else tuple(gaps)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _ids(values: Any) -> frozenset[int]:
    """Return a token or a list of tokens; raises ValueError for anything else, such as digits in a text."""
    return frozenset([values]) if isinstance(values, int) else _listed(values)


def _listed(values: Any) -> frozenset[int]:
    """Return a list of tokens; raises ValueError for anything else."""
    tokens = values or ()
    if not isinstance(tokens, list | tuple) or not all(type(token) is int and -1 <= token < 2**31 for token in tokens):
        raise ValueError(f"a list of tokens is wanted, not {str(values)[:80]}")
    return frozenset(tokens)


def _in_order(values: Any, kind: type = int) -> list[Any]:
    if not isinstance(values or [], list) or not all(isinstance(value, kind) for value in values or ()):
        raise ValueError(f"bad_words_ids holds lists of tokens, not {str(values)[:80]}")
    return values or []


def _settings_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings that older checkpoints hold in config.json, as transformers takes them."""
    settings: dict[str, Any] = {"eos_token_id": 2}  # MistralConfig's
    for part in (config.get("text_config") or {}, config):
        settings |= {name: value for name, value in part.items() if value is not None}
    return settings


def _default_max_new_tokens(checkpoint: Checkpoint, values: Mapping[str, Any]) -> int:
    """Return the checkpoint's own limit, else what its kind of answers takes: those of chatty ones are paragraphs."""
    if own := values.get("max_new_tokens"):
        if int(own) < 1:
            raise ValueError(f"max_new_tokens {own} is not above 0")
        return int(own)
    return default_answer_length(f"{Path(checkpoint.name).name} {checkpoint.config.get('_name_or_path') or ''}")


def default_answer_length(name: str) -> int:
    """Return the longest answer, in tokens, of a checkpoint of this name that has no limit of its own."""
    return _LONG_ANSWERS if "chatty" in name.lower() else _SHORT_ANSWERS


def generation_flags(settings: GenerationSettings, rules: GenerationRules) -> dict[str, str]:
    """Return what of the generation settings can change an answer, by flag; what changes nothing is left out."""
    given: dict[str, object] = {
        "--min-new-tokens": settings.min_new_tokens,
        "--temperature": settings.temperature or None,
        "--top-p": settings.top_p,
        "--seed": rules.seed if settings.is_sampling else None,
        "--repetition-penalty": settings.repetition_penalty,
        "--num-beams": settings.num_beams,
        "--stop": list(settings.stop) or None,
        "--choices": None if settings.choices is None else list(settings.choices),
    }
    return {flag: str(value) for flag, value in given.items() if value is not None}


def random_key(seed: int, question: str, page_ids: Sequence[str]) -> int:
    """Return what the random numbers of a request are made from, 64 bits, signed.

    They depend on the seed and the request alone, so that an answer does not depend on what else is asked.
    """
    digest = hashlib.blake2b(repr((seed, question, tuple(page_ids))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
