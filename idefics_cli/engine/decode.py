"""Greedy decoding of a batch of prompts, as stock `generate` does it one at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens of one answer."""

    tokens: tuple[int, ...]
    """Without the end token."""
    ended: bool
    """Whether the model ended the answer itself."""
    confidence: float
    """Product of the tokens' probabilities, the end token's included."""


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Answers in the order of the prompts, and what the two phases took."""

    rows: list[Decoded]
    prefill_ms: float
    decode_ms: float


@torch.inference_mode()
def greedy(
    model: Any, prompts: Sequence[Tensor], *, ends: Collection[int], banned: Collection[int], max_new_tokens: int
) -> DecodedBatch:
    """Decode prompts given as embeddings, (length, width) each, until each has ended or reached the limit.

    Prompts are padded on the left; positions count from each row's first real token, so that a row is computed as it
    would be alone. Rows that have ended leave the batch once they are half of it.
    """
    device = model.device
    started = _clock(device)
    embeds, mask = _padded(prompts)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.text_config)
    end_ids = torch.tensor(sorted(ends), device=device)
    ban_ids = torch.tensor(sorted(banned), device=device, dtype=torch.long)
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch belongs to
    tokens = torch.full((len(prompts), max_new_tokens), -1, device=device)
    log_probability = torch.zeros(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    prefilled = started
    for step in range(max_new_tokens):
        logits = _step(model, embeds, mask, positions, cache)
        logits[:, ban_ids] = -torch.inf
        best = logits.argmax(-1)
        if step == 0:
            prefilled = _clock(device)
        live = ~ended[rows]
        chosen = torch.log_softmax(logits, -1).gather(1, best[:, None])[:, 0]
        log_probability[rows] += torch.where(live, chosen, 0.0)
        ending = live & torch.isin(best, end_ids)
        tokens[rows, step] = torch.where(live & ~ending, best, -1)
        ended[rows] |= ending
        live &= ~ending
        alive = int(live.sum())
        if alive == 0:
            break
        if alive <= len(rows) // 2:
            kept = live.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, best, mask, positions = rows[kept], best[kept], mask[kept], positions[kept]
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
        positions = positions[:, -1:] + 1
        embeds = model.get_input_embeddings()(best[:, None])
    finished = _clock(device)
    decoded = [
        Decoded(tuple(token for token in row if token >= 0), bool(end), confidence)
        for row, end, confidence in zip(tokens.tolist(), ended.tolist(), log_probability.exp().tolist(), strict=True)
    ]
    return DecodedBatch(decoded, (prefilled - started) * 1e3, (finished - prefilled) * 1e3)


def _step(model: Any, embeds: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Run the text model over (rows, new, width); return the last position's logits, (rows, vocabulary) in float32."""
    hidden = model.model.text_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[:, -1]).float()
    return logits


def _padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad embeddings on the left: (rows, longest, width), and their mask (rows, longest)."""
    longest = max(len(prompt) for prompt in prompts)
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeds, mask


def _clock(device: torch.device) -> float:
    """Seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
