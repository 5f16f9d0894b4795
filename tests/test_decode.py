from __future__ import annotations

from typing import Any

import pytest
import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.decode import greedy


@pytest.fixture(scope="module")
def model(tiny_settings: ModelSettings) -> Any:
    return load_model(open_checkpoint(tiny_settings))


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, 256) for length in (5, 60, 17, 33, 8, 41)]


def stock(model: Any, prompt: torch.Tensor, count: int) -> list[int]:
    with torch.inference_mode():
        generated = model.generate(
            inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=count
        )
    return [int(token) for token in generated[0]]


def test_tokens_are_those_of_generate_one_at_a_time(model: Any, prompts: list[torch.Tensor]) -> None:
    end = model.generation_config.eos_token_id
    batch = greedy(model, prompts, ends=[end], banned=[], max_new_tokens=24)
    for prompt, row in zip(prompts, batch.rows, strict=True):
        assert [*row.tokens, *([end] if row.ended else [])] == stock(model, prompt, 24)


def test_early_ends_leave_the_batch_and_the_rest_is_the_same(model: Any, prompts: list[torch.Tensor]) -> None:
    """Each row ends where a token of its own comes for the first time, so that rows end at different steps."""
    alone = [greedy(model, [prompt], ends=[], banned=[], max_new_tokens=16).rows[0].tokens for prompt in prompts]
    for end in {tokens[3] for tokens in alone}:
        batch = greedy(model, prompts, ends=[end], banned=[], max_new_tokens=16)
        for tokens, row in zip(alone, batch.rows, strict=True):
            expected = tokens[: tokens.index(end)] if end in tokens else tokens
            assert row.tokens == expected
            assert row.ended is (end in tokens)


def test_confidence_is_the_product_of_the_tokens_probabilities(model: Any, prompts: list[torch.Tensor]) -> None:
    (row,) = greedy(model, prompts[:1], ends=[], banned=[], max_new_tokens=3).rows
    embeds, product = prompts[0][None], 1.0
    with torch.inference_mode():
        for token in row.tokens:
            hidden = model.model.text_model(inputs_embeds=embeds).last_hidden_state
            product *= float(model.lm_head(hidden[:, -1]).softmax(-1)[0, token])
            embeds = torch.cat((embeds, model.get_input_embeddings()(torch.tensor([[token]]))), dim=1)
    assert row.confidence == pytest.approx(product, rel=1e-3)


def test_banned_tokens_never_come(model: Any, prompts: list[torch.Tensor]) -> None:
    free = greedy(model, prompts, ends=[], banned=[], max_new_tokens=4)
    banned = {row.tokens[0] for row in free.rows}
    batch = greedy(model, prompts, ends=[], banned=banned, max_new_tokens=4)
    assert banned.isdisjoint(token for row in batch.rows for token in row.tokens)
