from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from idefics_cli.config import ModelSettings
from idefics_cli.engine import plain
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.decode import Decoded, Decoder
from idefics_cli.engine.text import Cache, Span, Text

ROOM = 100  # slots of a row


@pytest.fixture(scope="module")
def model(tiny_settings: ModelSettings) -> Any:
    return load_model(open_checkpoint(tiny_settings))


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, 256) for length in (5, 60, 17, 33, 8, 41)]


def stock(model: Any, prompt: Tensor, count: int) -> list[int]:
    with torch.inference_mode():
        generated = model.generate(
            inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=count
        )
    return [int(token) for token in generated[0]]


@torch.inference_mode()
def decode(
    model: Any, prompts: list[Tensor], *, rows: int, ends: Collection[int], count: int, banned: Collection[int] = ()
) -> list[Decoded]:
    """Decode prompts in so many rows; the next prompt takes the place of one that has ended."""
    text = Text(model, torch.device("cpu"))
    cache = Cache(text, 1 + rows * ROOM)
    decoder = Decoder(text, cache, rows, ends=ends, banned=banned, max_new_tokens=count)
    waiting, active = list(enumerate(prompts)), dict[int, int]()
    done: dict[int, Decoded] = {}
    while waiting or active:
        new = {row: waiting.pop(0) for row in range(rows) if row not in active and waiting}
        if new:
            spans = [Span(len(prompt), own_start=1 + row * ROOM) for row, (_, prompt) in new.items()]
            states = text.prefill(torch.cat([prompt for _, prompt in new.values()]), spans, cache, plain)
            decoder.start(list(new), spans, states, plain)
            active.update({row: number for row, (number, _) in new.items()})
        for row, decoded in decoder.finished(list(active)).items():
            done[active.pop(row)] = decoded
        if active:
            decoder.step(list(active), plain)
    return [done[number] for number in range(len(prompts))]


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_tokens_are_those_of_generate_one_at_a_time(model: Any, prompts: list[Tensor], rows: int) -> None:
    end = model.generation_config.eos_token_id
    for prompt, row in zip(prompts, decode(model, prompts, rows=rows, ends=[end], count=24), strict=True):
        assert [*row.tokens, *([end] if row.ended else [])] == stock(model, prompt, 24)


def test_rows_that_end_make_room_and_the_rest_is_the_same(model: Any, prompts: list[Tensor]) -> None:
    """Each row ends where a token of its own comes for the first time, so that rows end at different steps."""
    alone = [row.tokens for row in decode(model, prompts, rows=1, ends=[], count=16)]
    for end in {tokens[3] for tokens in alone}:
        found = decode(model, prompts, rows=3, ends=[end], count=16)
        for tokens, row in zip(alone, found, strict=True):
            assert row.tokens == (tokens[: tokens.index(end)] if end in tokens else tokens)
            assert row.ended is (end in tokens)


def test_confidence_is_the_product_of_the_tokens_probabilities(model: Any, prompts: list[Tensor]) -> None:
    (row,) = decode(model, prompts[:1], rows=1, ends=[], count=3)
    embeds, product = prompts[0][None], 1.0
    with torch.inference_mode():
        for token in row.tokens:
            hidden = model.model.text_model(inputs_embeds=embeds).last_hidden_state
            product *= float(model.lm_head(hidden[:, -1]).softmax(-1)[0, token])
            embeds = torch.cat((embeds, model.get_input_embeddings()(torch.tensor([[token]]))), dim=1)
    assert row.confidence == pytest.approx(product, rel=1e-3)


def test_banned_tokens_never_come(model: Any, prompts: list[Tensor]) -> None:
    free = decode(model, prompts, rows=6, ends=[], count=4)
    banned = {row.tokens[0] for row in free}
    found = decode(model, prompts, rows=6, ends=[], count=4, banned=banned)
    assert banned.isdisjoint(token for row in found for token in row.tokens)
