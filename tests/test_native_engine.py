"""The engine from submission to answer: the answers of transformers, whatever else is answered with them."""

from __future__ import annotations

import dataclasses
import gc
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait

import pytest
import torch

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.engine.native.engine import NativeEngine
from idefics_cli.engine.native.loading import load_native
from idefics_cli.engine.native.weights import CheckpointSource
from idefics_cli.errors import FailureKind, ModelError
from idefics_cli.records import Answer, Request
from tests.small_checkpoints import CPU, opened, reference, save_checkpoint, settings_of, small_requests

Comparable = tuple[str, float, float, int]


def loaded(settings: ModelSettings) -> NativeEngine:
    checkpoint, family, choice = opened(settings)
    return load_native(checkpoint, family, settings, choice, EngineInfo("m", {}, 32, family.image_processor))


def answers(settings: ModelSettings, requests: Sequence[Request]) -> list[Answer]:
    engine = loaded(settings)
    try:
        return [future.result() for future in [engine.submit(request) for request in requests]]
    finally:
        engine.close()


def shuffled(settings: ModelSettings, requests: Sequence[Request], seed: int) -> list[Answer]:
    """Answers in the order of the requests, submitted in another."""
    order = list(range(len(requests)))
    random.Random(seed).shuffle(order)
    found = answers(settings, [requests[index] for index in order])
    return [answer for _, answer in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


def comparable(found: Sequence[Answer]) -> list[Comparable]:
    assert not any(answer.failure for answer in found)
    return [(answer.text, answer.confidence, answer.mean_logprob, answer.new_tokens) for answer in found]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    generation = {"eos_token_id": [131, 103, 121]}  # of which some come early
    return settings_of(save_checkpoint(tmp_path_factory.mktemp("small"), generation=generation), max_new_tokens=16)


@pytest.fixture(
    scope="module", params=["small 200", "tiny 20", pytest.param("tiny 200", marks=pytest.mark.slow)], ids=str
)
def case(
    request: pytest.FixtureRequest, small: ModelSettings, tiny_settings: ModelSettings, sample_requests: list[Request]
) -> tuple[ModelSettings, list[Request]]:
    """A checkpoint and what it is asked: the random one is quick, the trained one is real."""
    name, count = request.param.split()
    tiny = dataclasses.replace(tiny_settings, max_new_tokens=11)
    asked = sample_requests if count == "200" else sample_requests[::11]  # whose answers are of many lengths
    return (small if name == "small" else tiny), asked[: int(count)]


@pytest.fixture(scope="module")
def generated(case: tuple[ModelSettings, list[Request]]) -> list[tuple[str, int]]:
    """Text and number of tokens of transformers' own `generate`, one request at a time."""
    settings, requests = case
    model = reference(settings)
    found = []
    for request in requests:
        (answer,) = model.answer([request])
        found.append((answer.text, answer.new_tokens))
    lengths = {count for _, count in found}
    assert len(lengths) > 2
    assert settings.max_new_tokens in lengths  # the limit and the model's own end both occur
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 16, 64])
def test_answers_are_those_of_generate_at_any_batch_size_and_in_any_order(
    batch_size: int, case: tuple[ModelSettings, list[Request]], generated: list[tuple[str, int]]
) -> None:
    settings, requests = case
    found = shuffled(dataclasses.replace(settings, batch_size=batch_size), requests, batch_size)
    assert [(answer.text, answer.new_tokens) for answer in found] == generated
    assert max(answer.batch_size for answer in found) <= batch_size


def test_answers_are_those_of_generate_when_threads_ask_at_random_times(
    case: tuple[ModelSettings, list[Request]], generated: list[tuple[str, int]]
) -> None:
    settings, requests = case
    engine = loaded(settings)
    found: dict[int, Future[Answer]] = {}

    def submit(numbers: range, seed: int) -> None:
        pause = random.Random(seed)
        for number in numbers:
            time.sleep(pause.random() * 0.02)
            found[number] = engine.submit(requests[number])

    threads = [threading.Thread(target=submit, args=(range(start, len(requests), 5), start)) for start in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [found[number].result() for number in range(len(requests))]
    engine.close()
    assert [(answer.text, answer.new_tokens) for answer in results] == generated


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [
        (Dtype.FLOAT32, Quantize.NONE),
        (Dtype.BFLOAT16, Quantize.NONE),
        (Dtype.FLOAT32, Quantize.FP8),
        (Dtype.BFLOAT16, Quantize.FP8),
        (Dtype.FLOAT32, Quantize.INT4),
        (Dtype.BFLOAT16, Quantize.INT8),
    ],
)
def test_an_answer_is_bit_for_bit_the_same_in_any_company(
    dtype: Dtype, quantize: Quantize, case: tuple[ModelSettings, list[Request]]
) -> None:
    settings, requests = case
    settings = dataclasses.replace(settings, dtype=dtype, quantize=quantize, max_new_tokens=10)
    some = requests[:3] if len(requests) < 200 else requests
    alone = comparable(shuffled(dataclasses.replace(settings, batch_size=1), some, 0))
    for batch_size in (7, 64):
        together = shuffled(dataclasses.replace(settings, batch_size=batch_size), some, batch_size)
        assert comparable(together) == alone


def test_neither_threads_nor_company_change_a_bit(case: tuple[ModelSettings, list[Request]]) -> None:
    """Tests run with one thread; users have several."""
    settings, requests = case
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        some = requests[:40] if len(requests) == 200 else requests[:6]  # the trained one takes seconds a request
        alone = comparable(shuffled(dataclasses.replace(settings, batch_size=1), some, 0))
        together = comparable(shuffled(dataclasses.replace(settings, batch_size=16), some, 1))
    finally:
        torch.set_num_threads(before)
    assert together == alone


@pytest.mark.parametrize(("dtype", "quantize"), [(Dtype.BFLOAT16, Quantize.NONE), (Dtype.BFLOAT16, Quantize.FP8)])
def test_short_and_long_prompts_leave_one_another_as_they_are(
    dtype: Dtype, quantize: Quantize, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Contexts of more than one block of attention beside short ones."""
    folder = save_checkpoint(tmp_path_factory.mktemp("small"), generation={})
    settings = settings_of(folder, dtype=dtype, quantize=quantize)
    requests = [
        dataclasses.replace(request, question=request.question * repeated)
        for request in small_requests()
        for repeated in (1, 8, 30)
    ]
    alone = comparable(shuffled(dataclasses.replace(settings, batch_size=1), requests, 0))
    for batch_size in (3, 18):
        together = shuffled(dataclasses.replace(settings, batch_size=batch_size), requests, batch_size)
        assert comparable(together) == alone


def test_fp8_stays_near(tiny_settings: ModelSettings, sample_requests: list[Request]) -> None:
    some = sample_requests[:12]
    exact = answers(tiny_settings, some)
    found = answers(dataclasses.replace(tiny_settings, quantize=Quantize.FP8), some)
    assert sum(one.text == other.text for one, other in zip(exact, found, strict=True)) >= 9
    assert any(one.confidence != other.confidence for one, other in zip(exact, found, strict=True))


def test_several_pages_in_one_prompt_have_the_answer_of_generate(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    one, two = sample_requests[0].pages[0], sample_requests[1].pages[0]  # split and not
    requests = [
        Request("What is the total?", (one, two), ("0", "1")),
        Request("Who is the customer?", (two, one), ("1", "0")),
        Request("Who is the customer?", (two, two), ("1", "1")),
    ]
    model = reference(tiny_settings)
    expected = [model.answer([request])[0].text for request in requests]
    assert [answer.text for answer in answers(tiny_settings, requests)] == expected


@pytest.fixture
def engine(small: ModelSettings) -> NativeEngine:
    return loaded(small)


def test_confidence_is_the_product_of_the_tokens_probabilities(small: ModelSettings) -> None:
    model = reference(small)
    for request, answer in zip(small_requests(), answers(small, small_requests()), strict=True):
        (generated,) = model.generate([request])
        assert answer.mean_logprob == pytest.approx(generated.logprob / len(generated.tokens), rel=1e-4)
        assert answer.confidence == pytest.approx(2.718281828459045**generated.logprob, rel=1e-3)
        assert answer.prompt_tokens == generated.prompt_tokens


def test_a_question_that_cannot_be_asked_fails_alone(engine: NativeEngine) -> None:
    request = small_requests()[0]
    special = engine.submit(dataclasses.replace(request, question="an <image>?")).result()
    long = engine.submit(dataclasses.replace(request, question="a" * 1024)).result()
    assert special.failure is not None
    assert special.failure.kind is FailureKind.BAD_QUESTION
    assert long.failure is not None
    assert long.failure.kind is FailureKind.TOO_LARGE
    assert "the model takes 1024" in long.failure.detail
    longer = engine.submit(dataclasses.replace(request, question="a" * 10**8)).result()  # as tokens it would be 50 GB
    assert longer.failure is not None
    assert str(longer.failure) == "too-large: a text of 100,000,000 characters; the model takes 1024 tokens"
    assert engine.submit(request).result().failure is None
    engine.close()


def test_an_answer_cut_at_the_limit_says_so(small: ModelSettings) -> None:
    (answer,) = answers(dataclasses.replace(small, max_new_tokens=1), small_requests()[:1])
    assert (answer.warning, answer.new_tokens) == ("answer cut at 1 tokens", 1)


def test_answers_of_a_fixed_length_go_on_past_the_end(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    settings = dataclasses.replace(tiny_settings, ignore_eos=True, max_new_tokens=40)
    assert {answer.new_tokens for answer in answers(settings, sample_requests[:3])} == {40}


def test_an_output_that_is_not_a_number_is_a_model_error(small: ModelSettings) -> None:
    checkpoint, family, choice = opened(small)
    read = CheckpointSource(checkpoint, torch.float32, CPU)

    def poisoned(name: str) -> torch.Tensor:
        return read(name) * float("nan") if name == "lm_head.weight" else read(name)

    info = EngineInfo("m", {}, 32, family.image_processor)
    engine = load_native(checkpoint, family, small, choice, info, source=poisoned)
    answer = engine.submit(small_requests()[0]).result()
    engine.close()
    assert str(answer.failure) == "model-error: the model's output is not a number"
    assert answer.text == ""


def test_closing_ends_what_is_on_its_way_at_once_and_silently(
    small: ModelSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for pause in (0.0, 0.01, 0.02, 0.04, 0.08):
        engine = loaded(dataclasses.replace(small, max_new_tokens=2, ignore_eos=True, batch_size=2))
        futures = [engine.submit(request) for request in small_requests() * 40]
        time.sleep(pause)
        started = time.monotonic()
        engine.close()
        assert time.monotonic() - started < 1
        assert not wait(futures, timeout=1).not_done
        assert any(isinstance(future.exception(), ModelError) for future in futures)
    with pytest.raises(ModelError, match="closed"):
        engine.submit(small_requests()[0])
    engine.close()  # once more does no harm
    assert not caplog.records


def test_a_bug_ends_every_future_with_a_model_error(small: ModelSettings) -> None:
    engine = loaded(small)
    broken = dataclasses.replace(small_requests()[0].pages[0], crops=("no pixels",))  # type: ignore[arg-type]
    good = engine.submit(dataclasses.replace(small_requests()[1]))
    bad = engine.submit(Request("Who?", (broken,), ("broken",)))
    with pytest.raises(ModelError, match="the engine failed"):
        bad.result(timeout=10)
    assert wait([good], timeout=10).done
    with pytest.raises(ModelError, match="the engine failed"):
        engine.submit(small_requests()[0])
    engine.close()


def test_a_request_that_was_cancelled_is_let_go(engine: NativeEngine) -> None:
    first, *others = [engine.submit(request) for request in small_requests()]
    first.cancel()
    assert all(future.result().failure is None for future in others)
    engine.close()


def test_weights_that_are_not_wanted_any_more_are_let_go_at_the_next_one(small: ModelSettings) -> None:
    checkpoint, family, choice = opened(small)
    read = CheckpointSource(checkpoint, torch.float32, CPU)
    names: list[str] = []

    def source(name: str) -> torch.Tensor:
        names.append(name)
        return read(name)

    info = EngineInfo("m", {}, 32, family.image_processor)
    with pytest.raises(ModelError, match="closed"):
        load_native(checkpoint, family, small, choice, info, source=source, is_cancelled=lambda: len(names) >= 3)
    assert len(names) == 3


@pytest.mark.parametrize("quantize", [quantize for quantize in Quantize if quantize.is_native])
def test_weights_go_with_their_engine_without_a_collection_of_garbage(quantize: Quantize, small: ModelSettings) -> None:
    def tensors() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    settings = dataclasses.replace(small, quantize=quantize)
    answers(settings, small_requests()[:1])  # what is kept for good, such as means of pixels, is there from now on
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        answers(settings, small_requests()[:1])
        assert tensors() == before
    finally:
        gc.enable()


def test_weights_that_cannot_fit_are_refused_at_once(small: ModelSettings) -> None:
    checkpoint, _, _choice = opened(small)
    text = {**checkpoint.config["text_config"], "vocab_size": 2_000_000_000_000}
    huge = dataclasses.replace(checkpoint, config={**checkpoint.config, "text_config": text})
    from idefics_cli.engine.families import idefics2_family_of

    family = idefics2_family_of(huge)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"the weights take [0-9.]+ GB in bfloat16, and [0-9.]+ GB of memory are free"):
        load_native(
            huge, family, small, DeviceChoice("cpu", "bfloat16"), EngineInfo("m", {}, 1, family.image_processor)
        )
    assert time.monotonic() - started < 1


def test_an_engine_that_was_opened_loads_with_the_first_request(tiny_settings: ModelSettings) -> None:
    engine = open_engine(tiny_settings)
    assert (engine.info.name, engine.info.capacity) == ("tiny", 32)
    assert engine.info.settings["--dtype"] == "float32"
    assert engine.info.settings["engine"] == "native"
    assert engine.info.image_processor == Idefics2ImageProcessor(490, 196)
    engine.close()  # before anything is loaded
    quantized = open_engine(dataclasses.replace(tiny_settings, quantize=Quantize.FP8, batch_size=40))
    assert quantized.info.settings["--quantize"] == "fp8"
    assert quantized.info.capacity == 80
