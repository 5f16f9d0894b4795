from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.engine.checkpoint import read_folder
from idefics_cli.engine.families import idefics2_family_of
from idefics_cli.engine.families.base import PromptBuilder
from idefics_cli.errors import FailureKind, RowFailedError, UsageError
from idefics_cli.records import plain_turns
from tests.conftest import SAMPLES

FOLDER = SAMPLES / "tiny-idefics2"
QUESTIONS = [
    "What is the total?",
    "  What   is\tthe total ?  ",
    "two\nlines\r\nand more\n",
    "Où est l'été à Zürich — 5 €?",
    "日本語 🙂 \u2028 \u00a0 e\u0301",
    "{{ 1 + 1 }} {% raw %} <b>&amp;</b> {question}",
    "<image",
    " ",
]


@pytest.fixture(scope="module")
def processor() -> Any:
    processor = Idefics2Processor.from_pretrained(FOLDER)
    processor.image_processor = Idefics2ImageProcessorPil.from_pretrained(FOLDER)
    return processor


def builder(template: str = "{question}", folder: Path = FOLDER) -> PromptBuilder:
    return idefics2_family_of(read_folder("tiny", folder)).prompt_builder(template)


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_tokens_are_those_of_transformers_processor(
    processor: Any, images: int, split: bool, chat: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    ignored = shutil.ignore_patterns("maker", "*.safetensors", *([] if chat else ["chat_template*"]))
    shutil.copytree(FOLDER, folder, ignore=ignored)
    ours = builder(folder=folder)
    processor.image_processor.do_image_splitting = split
    for question in QUESTIONS:
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        text = (
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            if chat
            else "<image>" * images + question
        )
        expected = processor(text=text, images=[Image.new("RGB", (300, 400))] * images)["input_ids"][0]
        prompt = ours.build(plain_turns(question, images), [5 if split else 1] * images)
        assert list(prompt.tokens) == expected
        image = processor.image_token_id
        assert image in prompt.tokens[: prompt.prefix_length]
        assert image not in prompt.tokens[prompt.prefix_length :]
        assert len(prompt.tokens) > prompt.prefix_length


def test_split_and_unsplit_pages_stand_in_one_prompt(processor: Any) -> None:
    prompt = builder().build(plain_turns("q", 2), [5, 1])
    assert prompt.tokens.count(processor.image_token_id) == 6 * 64
    assert prompt.tokens.count(processor.tokenizer.convert_tokens_to_ids("<fake_token_around_image>")) == 7


def test_questions_about_the_same_pages_have_a_prefix_in_common() -> None:
    first, second = (builder().build(plain_turns(question, 1), [5]) for question in ("What is the total?", "Who?"))
    assert first.prefix_length == second.prefix_length
    assert first.tokens[: first.prefix_length] == second.tokens[: first.prefix_length]


def test_the_template_wraps_the_question(processor: Any) -> None:
    tokens = builder("{question} Answer briefly: {x} {question}").build(plain_turns("What?", 1), [1]).tokens
    assert "What? Answer briefly: {x} What?<end_of_utterance>" in processor.tokenizer.decode(list(tokens))


def test_decoding_is_that_of_transformers_and_stripped(processor: Any) -> None:
    tokens = [*processor.tokenizer(" a total of 5 €\n").input_ids, 131]
    assert builder().decode(tokens) == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<fake_token_around_image>", "</s>"])
def test_special_tokens_are_no_question_and_no_template(token: str) -> None:
    with pytest.raises(RowFailedError, match=token) as caught:
        builder().build(plain_turns(f"What is {token}?", 1), [1])
    assert caught.value.failure.kind is FailureKind.BAD_QUESTION
    with pytest.raises(UsageError, match=token):
        builder(token + "{question}")


def test_a_folder_may_have_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / os.fsdecode(b"tiny\xff"))
    turns = plain_turns("What is the total?", 1)
    assert builder(folder=folder).build(turns, [1]) == builder().build(turns, [1])
