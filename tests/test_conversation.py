"""Conversations: the tokens of transformers' own processor, and the answers of its `generate` in any batch."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.config import ModelSettings
from idefics_cli.engine.checkpoint import read_folder
from idefics_cli.engine.families import idefics2_family_of
from idefics_cli.engine.families.base import PromptBuilder
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import PAGE, PagePart, Request, Turn, plain_turns
from tests.conftest import SAMPLES
from tests.small_checkpoints import (
    expected,
    noise_page,
    opened,
    reference,
    save_checkpoint,
    settings_of,
    small_requests,
)
from tests.test_native_engine import answers, comparable, shuffled

FOLDER = SAMPLES / "tiny-idefics2"
CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "text before a page": (Turn("user", ("Look at ", PAGE, "this. Who?")),),
    "pages and texts in turn": (Turn("user", (PAGE, "first", PAGE, PAGE, " second ", PAGE, "which?")),),
    "page at the end": (Turn("user", ("Which city is that? ", PAGE)),),
    "several turns": (
        Turn("user", (PAGE, "What is the total?")),
        Turn("assistant", ("12.50 €",)),
        Turn("user", ("And the date?",)),
    ),
    "pages in several turns": (
        Turn("system", ("Be brief.",)),
        Turn("user", (PAGE, "Who?", PAGE)),
        Turn("assistant", ("Ann\nLee",)),
        Turn("user", ("Compare it with ", PAGE, " and ", PAGE, ": who?")),
    ),
    "a page given back": (Turn("user", ("Show it.",)), Turn("assistant", ("Here: ", PAGE)), Turn("user", ("Who?",))),
}


@pytest.fixture(scope="module")
def processor() -> Any:
    processor = Idefics2Processor.from_pretrained(FOLDER)
    processor.image_processor = Idefics2ImageProcessorPil.from_pretrained(FOLDER)
    return processor


def builder(template: str = "{question}", folder: Path = FOLDER) -> PromptBuilder:
    return idefics2_family_of(read_folder("tiny", folder)).prompt_builder(template)


def without_template(folder: Path, template: str | None = None) -> Path:
    """A copy of the tiny checkpoint's small files with another chat template, or none."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("maker", "*.safetensors", "chat_template*"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def pages_in(turns: Sequence[Turn]) -> int:
    return sum(isinstance(part, PagePart) for turn in turns for part in turn.content)


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.content],
        }
        for turn in turns
    ]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_tokens_are_those_of_transformers_processor(processor: Any, name: str, split: bool) -> None:
    turns = CONVERSATIONS[name]
    images = pages_in(turns)
    processor.image_processor.do_image_splitting = split
    text = processor.apply_chat_template(messages(turns), add_generation_prompt=True)
    wanted = processor(text=text, images=[Image.new("RGB", (300, 400))] * images)["input_ids"][0]
    prompt = builder().build(turns, [5 if split else 1] * images)
    assert list(prompt.tokens) == wanted
    assert processor.image_token_id not in prompt.tokens[prompt.prefix_length :]


def test_a_plain_question_is_the_simplest_conversation() -> None:
    page = noise_page(0, (2, 2))
    request = Request("Who?", (page, page), ("a", "b"))
    assert request.conversation == plain_turns("Who?", 2) == (Turn("user", (PAGE, PAGE, "Who?")),)
    assert request.asked == "Who?"


def text_of(prompt_builder: PromptBuilder, processor: Any, turns: Sequence[Turn]) -> str:
    tokens = prompt_builder.build(turns, [1] * pages_in(turns)).tokens
    text = processor.tokenizer.decode(list(tokens), skip_special_tokens=False)
    return str(text).removeprefix("<s>").replace("<image>" * 64, "<image>")


def test_the_prompt_template_wraps_every_question_of_the_user(processor: Any) -> None:
    text = text_of(builder("{question} Briefly."), processor, CONVERSATIONS["pages in several turns"])
    assert text.count("Briefly.") == 2
    assert "Be brief.<" in text
    assert ": who? Briefly.<end_of_utterance>" in text


def test_without_a_chat_template_turns_are_questions_and_answers(processor: Any, tmp_path: Path) -> None:
    base = builder(folder=without_template(tmp_path / "base"))
    fake = "<fake_token_around_image>"
    one = f"{fake}<image>{fake}"
    assert text_of(base, processor, CONVERSATIONS["several turns"]) == (
        f"{one} Question: What is the total? Answer: 12.50 €\nQuestion: And the date? Answer:"
    )
    assert text_of(base, processor, CONVERSATIONS["text before a page"]) == f"Look at {one} this. Who?"
    assert text_of(base, processor, CONVERSATIONS["pages in several turns"]) == (
        f"Be brief.\n\n{one} Question: Who?{one} Answer: Ann\nLee\n"
        f"Compare it with {one} and {one} Question: : who? Answer:"
    )


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", ""])
def test_a_system_turn_that_a_template_does_not_take_stands_in_the_first_of_the_user(
    processor: Any, tmp_path: Path, template: str
) -> None:
    own = (FOLDER / "chat_template.jinja").read_text()
    start = "{% for message in messages %}"
    skipping = f"{start}{{% if message['role'] == 'system' %}}{template}{{% else %}}"
    folder = without_template(
        tmp_path / "t",
        own.replace(start, skipping).replace("{% endfor %}{% if add", "{% endif %}{% endfor %}{% if add"),
    )
    turns = CONVERSATIONS["pages in several turns"]
    folded = (Turn("user", ("Be brief.\n\n", *turns[1].content)), *turns[2:])
    crops = [1] * pages_in(turns)
    assert builder(folder=folder).build(turns, crops).tokens == builder().build(folded, crops).tokens
    greeted = (turns[0], Turn("assistant", ("Hello.",)), *turns[1:])
    shown = (Turn("assistant", ("Hello.",)), *folded)
    assert builder(folder=folder).build(greeted, crops).tokens == builder().build(shown, crops).tokens


def test_a_template_that_writes_the_first_token_gets_it_once(tmp_path: Path) -> None:
    own = (FOLDER / "chat_template.jinja").read_text()
    named = builder(folder=without_template(tmp_path / "t", "{{ bos_token }}" + own))
    for turns in CONVERSATIONS.values():
        crops = [1] * pages_in(turns)
        tokens = named.build(turns, crops).tokens
        assert tokens == builder().build(turns, crops).tokens
        assert tokens.count(tokens[0]) == 1


def test_turns_that_a_template_refuses_are_a_bad_question(tmp_path: Path) -> None:
    own = (FOLDER / "chat_template.jinja").read_text()
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + own
    prompts = builder(folder=without_template(tmp_path / "t", refusing))
    assert prompts.build(plain_turns("q", 1), [1]).tokens
    with pytest.raises(RowFailedError, match="one turn only") as caught:
        prompts.build(CONVERSATIONS["several turns"], [1])
    assert caught.value.failure.kind is FailureKind.BAD_QUESTION


def test_special_tokens_are_refused_in_every_turn() -> None:
    turns = (Turn("user", (PAGE, "a")), Turn("assistant", ("<image>",)), Turn("user", ("b",)))
    with pytest.raises(RowFailedError, match="turn 2 of the conversation holds the model's special token <image>"):
        builder().build(turns, [1])


# --- answers ---


def test_conversations_without_a_page_are_answered_as_generate_does(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "small", generation={"eos_token_id": [131, 103, 121]})
    settings = settings_of(folder)
    asked = [Request(text, (), ()) for text in ("Who?", "What is the total of it all?", "Who?")]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = opened(settings)[1].prompt_builder("{question}")
    wanted = []
    for request in asked:
        tokens = torch.tensor([prompts.build(request.conversation, []).tokens])
        new = model.generate(input_ids=tokens, do_sample=False, max_new_tokens=12)[0, tokens.shape[1] :]
        wanted.append((prompts.decode(new.tolist()), len(new)))
    found = answers(settings, [*asked, *small_requests()])
    assert [(answer.text, answer.new_tokens) for answer in found[:3]] == wanted
    assert comparable(found[3:]) == comparable(answers(settings, small_requests()))
    with pytest.raises(RowFailedError, match="no page"):
        reference(settings).answer(asked[:1])


def requests() -> list[Request]:
    """Each conversation about pages of different shapes, twice over, and plain questions among them."""
    shapes = [((16, 18),), ((14, 30),), ((14, 16),) * 4 + ((15, 17),), ((9, 5),)]
    pages = [noise_page(seed, *shape) for seed, shape in enumerate(shapes)]
    found = []
    for shift in range(3):
        for name, turns in CONVERSATIONS.items():
            chosen = [(at + shift) % len(pages) for at in range(pages_in(turns))]
            ids = tuple(f"page {at}" for at in chosen)
            found.append(Request(name, tuple(pages[at] for at in chosen), ids, turns))
    return [*found, *small_requests()]


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "base"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    folder = save_checkpoint(tmp_path_factory.mktemp("small"), generation={"eos_token_id": [131, 103, 121]})
    if not request.param:
        (folder / "chat_template.jinja").unlink()
    return settings_of(folder)


@pytest.fixture(scope="module")
def generated(small: ModelSettings) -> list[tuple[str, int]]:
    blocked: dict[str, Any] = (
        {} if (Path(small.model) / "chat_template.jinja").exists() else {"suppress_tokens": [129, 130]}
    )
    return expected(Path(small.model), requests=requests(), **blocked)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_answers_are_those_of_generate_in_any_batch(
    small: ModelSettings, generated: list[tuple[str, int]], batch_size: int
) -> None:
    alone = answers(dataclasses.replace(small, batch_size=1), requests()[:4])
    found = shuffled(dataclasses.replace(small, batch_size=batch_size), requests(), batch_size)
    assert [(answer.text, answer.new_tokens) for answer in found] == generated
    assert comparable(found)[:4] == comparable(alone)


def test_transformers_backend_answers_the_same_conversations(
    small: ModelSettings, generated: list[tuple[str, int]]
) -> None:
    model = reference(small)
    for request, wanted in zip(requests(), generated, strict=True):
        (answer,) = model.answer([request])
        assert (answer.text, answer.new_tokens) == wanted
