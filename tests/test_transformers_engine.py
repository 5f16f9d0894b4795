"""transformers' own `generate` behind `submit`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.config import ModelSettings
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.transformers import TransformersEngine, TransformersModel
from idefics_cli.errors import FailureKind, ModelError
from idefics_cli.records import Answer, PreparedPage, Request
from tests.conftest import SAMPLES, TINY
from tests.small_checkpoints import opened, reference, save_checkpoint, settings_of, small_requests


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    generation = {"eos_token_id": [131, 103, 121]}
    return settings_of(save_checkpoint(tmp_path_factory.mktemp("small"), generation=generation))


def engine_of(settings: ModelSettings, model: TransformersModel | None = None) -> TransformersEngine:
    checkpoint, family, choice = opened(settings)
    info = EngineInfo("m", {}, 32, family.image_processor)
    return TransformersEngine(checkpoint, family, settings, choice, info, model=model)


@pytest.mark.parametrize(("name", "split"), [("small-print.png", True), ("notice.bmp", False)])
def test_it_is_the_processor_and_generate_as_the_model_card_shows_them(
    name: str, split: bool, tiny_settings: ModelSettings
) -> None:
    settings = dataclasses.replace(tiny_settings, max_new_tokens=12)
    with Image.open(SAMPLES / "documents" / name) as opened_image:
        image = opened_image.convert("RGB")
    page = PreparedPage(TINY.crops(image, split=split), "pillow", 0, 0)
    (ours,) = reference(settings).generate([Request("What is the total?", (page,), ("p",))])
    folder = SAMPLES / "tiny-idefics2"
    processor = Idefics2Processor.from_pretrained(folder)
    processor.image_processor = Idefics2ImageProcessorPil.from_pretrained(folder, do_image_splitting=split)
    content = [{"type": "image"}, {"type": "text", "text": "What is the total?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[image], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    assert list(ours.tokens) == generated[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("on_host", [True, False])
def test_batches_give_the_answers_of_one_at_a_time_wherever_pixels_are_padded(
    on_host: bool, small: ModelSettings
) -> None:
    checkpoint, family, choice = opened(small)
    model = TransformersModel(checkpoint, family, small, choice)
    model.is_on_host = on_host
    requests = small_requests()
    alone = [model.generate([request])[0].tokens for request in requests]
    assert [one.tokens for one in model.generate(requests[:3])] == alone[:3]
    answers = model.answer(requests)
    assert [answer.new_tokens for answer in answers] == [len(tokens) for tokens in alone]
    assert {answer.batch_size for answer in answers} == {6}


@pytest.mark.parametrize("batch_size", [None, 4])
def test_what_fails_in_a_batch_fails_alone(batch_size: int | None, small: ModelSettings) -> None:
    engine = engine_of(dataclasses.replace(small, batch_size=batch_size))
    requests = small_requests()
    requests.insert(2, dataclasses.replace(requests[0], question="an <image>?"))
    answers = [future.result() for future in [engine.submit(request) for request in requests]]
    engine.close()
    assert [index for index, answer in enumerate(answers) if answer.failure] == [2]
    assert answers[2].failure is not None
    assert answers[2].failure.kind is FailureKind.BAD_QUESTION
    assert max(answer.batch_size for answer in answers) <= (batch_size or 1)


class Scripted(TransformersModel):
    """A model that does as the question says."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        for request in requests:
            if request.question == "slow":
                time.sleep(0.3)
            if request.question == "large":
                raise torch.OutOfMemoryError("no memory left")
            if request.question == "broken":
                raise ValueError("a bug")
            if request.question == "poison":
                raise torch.AcceleratorError("device-side assert\nmore")
        return [Answer(request.question) for request in requests]


@pytest.fixture
def scripted(small: ModelSettings) -> TransformersEngine:
    checkpoint, family, choice = opened(small)
    return engine_of(dataclasses.replace(small, batch_size=2), Scripted(checkpoint, family, small, choice))


def ask(question: str) -> Request:
    return dataclasses.replace(small_requests()[0], question=question)


def test_errors_of_one_request_are_its_answer(scripted: TransformersEngine) -> None:
    futures = [scripted.submit(ask(question)) for question in ("a", "large", "broken", "b")]
    found = [str(future.result().failure or future.result().text) for future in futures]
    scripted.close()
    assert found == [
        "a",
        "out-of-memory: the question and its pages do not fit the memory",
        "model-error: ValueError: a bug",
        "b",
    ]


def test_a_poisoned_gpu_ends_every_request(scripted: TransformersEngine) -> None:
    futures = [scripted.submit(ask(question)) for question in ("slow", "a", "poison", "b", "c", "d")]
    assert futures[0].result().text == "slow"
    for future in futures[2:]:
        with pytest.raises(ModelError, match=r"the GPU failed and can't go on: device-side assert$"):
            future.result(timeout=5)
    with pytest.raises(ModelError, match="the GPU failed"):
        scripted.submit(ask("e"))
    scripted.close()


def test_closing_does_not_wait_for_what_is_queued(scripted: TransformersEngine) -> None:
    futures = [scripted.submit(ask("slow")) for _ in range(40)]
    started = time.monotonic()
    scripted.close()
    assert time.monotonic() - started < 2
    assert not wait(futures, timeout=1).not_done
    assert isinstance(futures[-1].exception(), ModelError)
    with pytest.raises(ModelError, match="closed"):
        scripted.submit(ask("late"))
    scripted.close()


def test_damaged_weights_are_a_model_error(small: ModelSettings, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    settings = settings_of(folder)
    checkpoint, family, choice = opened(settings)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="can't load this checkpoint"):
        TransformersModel(checkpoint, family, settings, choice)
