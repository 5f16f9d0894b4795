from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from transformers import Idefics2Processor

from idefics_cli.engine.prompt import PromptBuilder
from idefics_cli.errors import FailureKind, RowFailedError
from tests.conftest import SAMPLES


@pytest.fixture(scope="module")
def processor() -> Any:
    return Idefics2Processor.from_pretrained(SAMPLES / "tiny-idefics2")


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_tokens_are_the_stock_processors(processor: Any, images: int, split: bool, chat: bool) -> None:
    template, processor.chat_template = processor.chat_template, processor.chat_template if chat else None
    try:
        content = [{"type": "image"}] * images + [{"type": "text", "text": "What is the total?"}]
        text = (
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            if chat
            else "<image>" * images + "What is the total?"
        )
        processor.image_processor.do_image_splitting = split
        stock = processor(text=text, images=[Image.new("RGB", (300, 400))] * images)["input_ids"][0]
        ours = PromptBuilder(processor, "{question}").tokens("What is the total?", [5 if split else 1] * images)
    finally:
        processor.chat_template = template
    assert ours == stock


def test_split_and_unsplit_pages_stand_in_one_prompt(processor: Any) -> None:
    tokens = PromptBuilder(processor, "{question}").tokens("q", [5, 1])
    assert tokens.count(processor.image_token_id) == 6 * 64
    fake = processor.tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
    assert tokens.count(fake) == 7


def test_the_template_wraps_the_question(processor: Any) -> None:
    tokens = PromptBuilder(processor, "{question} Answer briefly.").tokens("What?", [1])
    assert "What? Answer briefly.<end_of_utterance>" in processor.tokenizer.decode(tokens)


@pytest.mark.parametrize("mark", ["<image>", "<end_of_utterance>", "<fake_token_around_image>", "</s>"])
def test_the_models_own_marks_are_no_question(processor: Any, mark: str) -> None:
    with pytest.raises(RowFailedError, match=mark) as caught:
        PromptBuilder(processor, "{question}").tokens(f"What is {mark}?", [1])
    assert caught.value.kind is FailureKind.BAD_QUESTION
