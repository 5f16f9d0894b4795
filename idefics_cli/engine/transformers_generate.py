"""Generation settings as transformers' `generate` takes them, and what it has no argument for: choices, stops."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idefics_cli.engine.families.generation import GenerationRules

_NO_OTHER_SAMPLING: Mapping[str, object] = {
    # what a checkpoint, or transformers itself, would do beside temperature and top-p
    "top_k": 0,
    "top_h": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def generate_arguments(rules: GenerationRules, *, ignore_eos: bool) -> dict[str, object]:
    """Return the arguments of `generate`; what stands in none of them is left to the checkpoint.

    Args:
        rules: of generation.
        ignore_eos: whether answers are as long as they may be.

    """
    least = rules.max_new_tokens if ignore_eos else rules.min_new_tokens
    arguments: dict[str, object] = {
        "max_new_tokens": rules.max_new_tokens,
        "min_new_tokens": least or None,
        "min_length": rules.min_length or None,
        "repetition_penalty": rules.repetition_penalty,
        "num_beams": rules.num_beams,
        "suppress_tokens": sorted(rules.suppressed_tokens) or None,
        "stop_strings": None,  # by `stops_at`, which cuts the text in the same place
        "do_sample": bool(rules.temperature),
    }
    if rules.eos_token_ids:  # a family may know of more than the checkpoint's files name
        arguments["eos_token_id"] = sorted(rules.eos_token_ids)
    if rules.temperature:
        arguments |= {"temperature": rules.temperature, "top_p": rules.top_p, **_NO_OTHER_SAMPLING}
    return arguments


def stops_at(has_stop: Callable[[Sequence[int]], bool], prompt_length: int) -> Any:
    """Return stopping criteria that end an answer whose text holds a stop string.

    Args:
        has_stop: says so of the answer's tokens.
        prompt_length: tokens before each answer.

    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class _HasStop(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
            rows = input_ids[:, prompt_length:].tolist()
            return torch.tensor([has_stop(row) for row in rows], device=input_ids.device)

    return StoppingCriteriaList([_HasStop()])


def best_choice(model: Any, inputs: Mapping[str, Tensor], rules: GenerationRules) -> tuple[str, tuple[int, ...], float]:
    """Return the most probable of the choices of one prompt: its text, tokens, end token included, and log-probability.

    The prompt is computed once, and each choice behind it.

    Args:
        model: of transformers.
        inputs: its arguments for the prompt, (1, tokens) each.
        rules: of generation.

    """
    # Versions of transformers differ in what they call keys and values.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    prompt = model(**inputs, use_cache=True)
    found: list[tuple[str, tuple[int, ...], float]] = []
    for text, tokens in _written(rules):
        row = inputs["input_ids"].new_tensor([tokens])
        mask = torch.ones(1, inputs["input_ids"].shape[1] + len(tokens), dtype=torch.long, device=row.device)
        known = copy.deepcopy(getattr(prompt, cache))
        behind = model(input_ids=row, attention_mask=mask, use_cache=True, **{cache: known})
        logits = torch.cat([prompt.logits[0, -1:], behind.logits[0]]).float()  # (tokens + 1, vocabulary)
        found.append((text, *_scored(logits, tokens, rules)))
    return max(found, key=lambda one: one[2])


def best_choice_anew(
    model: Any, inputs: Mapping[str, Tensor], rules: GenerationRules
) -> tuple[str, tuple[int, ...], float]:
    """Return what `best_choice` does, with the prompt computed once more for each choice.

    Models differ in what they need of a prompt that is in the cache, and not in what they need of a whole one.
    """
    length = inputs["input_ids"].shape[1]
    found: list[tuple[str, tuple[int, ...], float]] = []
    for text, tokens in _written(rules):
        longer = dict(inputs)
        for name, value in inputs.items():
            if name == "input_ids":
                longer[name] = torch.cat([value, value.new_tensor([tokens])], 1)
            elif name == "attention_mask":
                longer[name] = torch.cat([value, value.new_ones(1, len(tokens))], 1)
            elif name in ("image_attention_mask", "cross_attention_mask"):
                # (1, tokens, images ...): an answer sees what the end of the prompt does
                longer[name] = torch.cat([value, value[:, -1:].expand(-1, len(tokens), *value.shape[2:])], 1)
            elif value.shape == (1, length):  # kinds of tokens: those of an answer are text
                longer[name] = torch.cat([value, value.new_zeros(1, len(tokens))], 1)
        logits = model(**longer).logits[0, length - 1 :].float()  # (tokens + 1, vocabulary)
        found.append((text, *_scored(logits, tokens, rules)))
    return max(found, key=lambda one: one[2])


def transition_logprobs(generated: Any, prompt_length: int) -> Tensor:
    """Return the log-probabilities of the tokens that `generate` returns, (sequences, new tokens); 0 behind an end.

    transformers' own function takes the width of logits from config.json, which is that of the first tokens only where
    a vocabulary was added to.

    Args:
        generated: what `generate` returns, scores among it.
        prompt_length: tokens before each answer.

    """
    tokens = generated.sequences[:, prompt_length:]
    beams = generated.get("beam_indices")
    if beams is None:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    else:
        rows = beams[:, : tokens.shape[1]]
    logprobs = []
    for step, scores in enumerate(generated.scores[: tokens.shape[1]]):
        row = rows[:, step]
        known = scores[row.clamp(min=0)].float().log_softmax(-1).gather(1, tokens[:, step, None])[:, 0]
        logprobs.append(known.where(row >= 0, 0.0))
    return torch.stack(logprobs, 1)


def _written(rules: GenerationRules) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the text of each choice with each of the ways to write it."""
    return ((choice.text, tokens) for choice in rules.choices for tokens in choice.tokens)


def _scored(logits: Tensor, tokens: tuple[int, ...], rules: GenerationRules) -> tuple[tuple[int, ...], float]:
    """Return a choice's tokens, end token included, and its log-probability.

    Args:
        logits: float32 (tokens + 1, vocabulary), from that of the first token on; changed.
        tokens: of the choice.
        rules: of generation.

    """
    logits[:, sorted(token for token in rules.suppressed_tokens if token < logits.shape[1])] = -torch.inf
    logprobs = logits.log_softmax(-1)
    logprob = float(logprobs[:-1].gather(1, torch.tensor([tokens], device=logits.device).T).sum())
    ends = sorted(rules.eos_token_ids)
    if not ends:
        return tokens, logprob
    end = int(logprobs[-1, ends].argmax())
    return (*tokens, ends[end]), logprob + float(logprobs[-1, ends[end]])
