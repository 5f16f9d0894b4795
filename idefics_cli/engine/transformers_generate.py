"""Generation settings as transformers' `generate` takes them, and what it has no argument for: choices, stops."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
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
    ends = sorted(rules.eos_token_ids)
    found: list[tuple[str, tuple[int, ...], float]] = []
    for text, tokens in ((choice.text, tokens) for choice in rules.choices for tokens in choice.tokens):
        row = inputs["input_ids"].new_tensor([tokens])
        mask = torch.ones(1, inputs["input_ids"].shape[1] + len(tokens), dtype=torch.long, device=row.device)
        known = copy.deepcopy(getattr(prompt, cache))
        behind = model(input_ids=row, attention_mask=mask, use_cache=True, **{cache: known})
        logits = torch.cat([prompt.logits[0, -1:], behind.logits[0]]).float()  # (tokens + 1, vocabulary)
        logits[:, sorted(token for token in rules.suppressed_tokens if token < logits.shape[1])] = -torch.inf
        logprobs = logits.log_softmax(-1)
        logprob = float(logprobs[:-1].gather(1, row.T).sum())
        if ends:
            end = int(logprobs[-1, ends].argmax())
            found.append((text, (*tokens, ends[end]), logprob + float(logprobs[-1, ends[end]])))
        else:
            found.append((text, tokens, logprob))
    return max(found, key=lambda one: one[2])
