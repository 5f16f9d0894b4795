from __future__ import annotations

import dataclasses
import random

import pytest

from idefics_cli.config import ModelSettings, Quantize
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.schedule import CPU_ROWS
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
    stock = {request.number: engine.tokens([request])[0] for request in sample_requests}
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


def test_auto_batch_size_and_names(tiny_settings: ModelSettings) -> None:
    engine = Idefics2Engine(tiny_settings)
    assert engine.name == "tiny"
    assert "float32" in engine.identity
    assert engine.batch_size == CPU_ROWS
    assert engine.window == 4 * CPU_ROWS
    assert engine.geometry.longest_edge == 490


def test_quantizing_is_part_of_the_identity_and_answers(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    settings = dataclasses.replace(tiny_settings, quantize=Quantize.FP8)
    assert "fp8" in Idefics2Engine(settings).identity
    exact, found = answers(tiny_settings, sample_requests[:20]), answers(settings, sample_requests[:20])
    assert sum(found[number].text == exact[number].text for number in exact) >= 15
    assert any(found[number].confidence != exact[number].confidence for number in exact)


def test_answers_of_a_fixed_length_go_on_past_the_end(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    settings = dataclasses.replace(tiny_settings, fixed_length=True, max_new_tokens=20)
    assert {answer.new_tokens for answer in answers(settings, sample_requests[:6]).values()} == {20}


def test_an_output_that_is_not_a_number_is_a_model_error(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    checkpoint = open_checkpoint(tiny_settings)
    model = load_model(checkpoint)
    model.lm_head.weight.data.fill_(float("nan"))
    (answer,) = Idefics2Engine(tiny_settings, checkpoint, model).answer(sample_requests[:1])
    assert answer.failure == "model-error: the model's output is not a number"
