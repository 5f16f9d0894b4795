from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.stock import StockEngine
from idefics_cli.records import Answer, Request


def answers(settings: ModelSettings, requests: list[Request]) -> dict[int, Answer]:
    return {answer.number: answer for answer in Idefics2Engine(settings).answer(requests)}


def test_200_questions_give_the_answers_of_stock_generate_at_any_batch_size_and_order(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    engine = StockEngine(tiny_settings)
    decode = engine._checkpoint.processor.tokenizer.decode
    # The model's own end and the token limit both occur.
    stock = {request.number: engine.tokens(request) for request in sample_requests}
    texts = {number: decode(tokens, skip_special_tokens=True).strip() for number, tokens in stock.items()}
    for batch_size in (1, 3, 16, 64):
        shuffled = sample_requests[:]
        random.Random(batch_size).shuffle(shuffled)
        found = answers(dataclasses.replace(tiny_settings, batch_size=batch_size), shuffled)
        assert len(found) == 200
        assert {number: answer.text for number, answer in found.items()} == texts
        assert {number: answer.new_tokens for number, answer in found.items()} == {n: len(t) for n, t in stock.items()}
        assert max(answer.batch_size for answer in found.values()) <= batch_size


def test_confidence_does_not_depend_on_the_batch(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    some = sample_requests[:12]
    alone = answers(dataclasses.replace(tiny_settings, batch_size=1), some)
    together = answers(dataclasses.replace(tiny_settings, batch_size=12), some)
    for number, answer in alone.items():
        assert together[number].confidence == pytest.approx(answer.confidence, rel=1e-3)
        assert 0 < answer.confidence <= 1


def test_several_pages_in_one_prompt_give_the_answer_of_stock_generate(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    one, two = sample_requests[0].pages[0], sample_requests[1].pages[0]  # split and not
    requests = [
        Request(0, "What is the total?", (one, two), (0, 1)),
        Request(1, "Who is the customer?", (two, one), (1, 0)),
    ]
    stock = StockEngine(tiny_settings)
    assert [a.text for _, a in sorted(answers(tiny_settings, requests).items())] == [
        a.text for a in stock.answer(requests)
    ]


def test_a_page_is_encoded_once_and_its_time_shared(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    page = sample_requests[0].pages
    engine = Idefics2Engine(tiny_settings)
    first = list(engine.answer([Request(n, f"question {n}", page, (7,)) for n in range(4)]))
    assert len({answer.vision_ms for answer in first}) == 1
    assert first[0].vision_ms > 0
    later = list(engine.answer([Request(9, "once more", page, (7,))]))
    assert later[0].vision_ms == 0


def test_a_question_with_the_models_marks_fails_alone(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    page = sample_requests[0].pages
    found = answers(
        tiny_settings, [Request(0, "an <image>?", page, (0,)), Request(1, "What is the total?", page, (0,))]
    )
    assert str(found[0].failure).startswith("bad-question")
    assert found[1].failure is None


def test_an_answer_cut_at_the_limit_says_so(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    found = answers(dataclasses.replace(tiny_settings, max_new_tokens=1), sample_requests[:1])
    assert found[0].warning == "answer cut at 1 tokens"
    assert found[0].new_tokens == 1


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    class Small(Idefics2Engine):
        """Memory for two rows."""

        def _answer_batch(self, rows):  # type: ignore[no-untyped-def]
            if len(rows) > 2:
                return self._answer_halves(rows)
            return super()._answer_batch(rows)

    some = sample_requests[:8]
    plain = answers(dataclasses.replace(tiny_settings, batch_size=8), some)
    halved = {a.number: a for a in Small(dataclasses.replace(tiny_settings, batch_size=8)).answer(some)}
    assert {n: a.text for n, a in halved.items()} == {n: a.text for n, a in plain.items()}
    assert all("batch halved for memory" in a.warning for a in halved.values())


def test_auto_batch_size_and_names(tiny_settings: ModelSettings) -> None:
    engine = Idefics2Engine(tiny_settings)
    assert engine.name == "tiny"
    assert "float32" in engine.identity
    assert engine.batch_size >= 1
    assert engine.geometry.longest_edge == 490
    assert engine.model.device.type == (
        "cuda" if torch.cuda.is_available() and tiny_settings.device != "cpu" else "cpu"
    )
