"""Examples in front of every question: read from a file, computed once, the answers those of `generate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.batch import run as run_batch
from idefics_cli.config import (
    Format,
    ModelSettings,
    OutputSettings,
    PageSettings,
    QuestionSettings,
    RunSettings,
    Split,
)
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.sequence import Sequence as Asked
from idefics_cli.errors import InputError, OutputError
from idefics_cli.inputs import read_examples
from idefics_cli.records import PAGE, Request, Turn
from tests.fakes import FakeEngine
from tests.small_checkpoints import expected, noise_page, reference, save_checkpoint, settings_of, small_runner
from tests.test_core import drive
from tests.test_native_engine import answers, comparable, shuffled

Png = Callable[..., Path]

# --- the engine ---

EXAMPLES = (
    Turn("user", (PAGE, PAGE, "What is the total?")),
    Turn("assistant", ("12.50",)),
    Turn("user", (PAGE, "When?")),
    Turn("assistant", ("May 1",)),
)


def with_examples(count: int = 4) -> list[Request]:
    """Three questions about each of so many pages, one of them behind a turn of its own, and a question without examples."""
    shown = [noise_page(90, (9, 12)), noise_page(91, (10, 6)), noise_page(92, (5, 5), (5, 5), (5, 5), (5, 5), (8, 8))]
    ids = ("x", "y", "z")
    found = []
    for number in range(count):
        page = noise_page(number, (6 + number % 5, 9))
        for question in ("Who?", "Where is it from?"):
            turns = (*EXAMPLES, Turn("user", (PAGE, question)))
            found.append(Request(question, (*shown, page), (*ids, str(number)), turns, shared_turns=4))
        more = (
            *EXAMPLES,
            Turn("user", ("Look: ", PAGE, "Who?")),
            Turn("assistant", ("Ann",)),
            Turn("user", ("Why?",)),
        )
        found.append(Request("Why?", (*shown, page), (*ids, str(number)), more, shared_turns=4))
        found.append(Request("Who?", (page,), (str(number),)))
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "base"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    folder = save_checkpoint(tmp_path_factory.mktemp("small"), generation={"eos_token_id": [131, 103, 121]})
    if not request.param:
        (folder / "chat_template.jinja").unlink()
    return settings_of(folder)


@pytest.fixture(scope="module")
def generated(small: ModelSettings) -> list[tuple[str, int]]:
    is_chat = (Path(small.model) / "chat_template.jinja").exists()
    blocked: dict[str, Any] = {} if is_chat else {"suppress_tokens": [129, 130]}
    return expected(Path(small.model), requests=with_examples(), **blocked)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_answers_are_those_of_generate_in_any_batch(
    small: ModelSettings, generated: list[tuple[str, int]], batch_size: int
) -> None:
    alone = answers(dataclasses.replace(small, batch_size=1), with_examples()[:3])
    found = shuffled(dataclasses.replace(small, batch_size=batch_size), with_examples(), batch_size)
    assert [(answer.text, answer.new_tokens) for answer in found] == generated
    assert comparable(found)[:3] == comparable(alone)


def test_transformers_backend_answers_the_same(small: ModelSettings, generated: list[tuple[str, int]]) -> None:
    model = reference(small)
    found = [model.answer([request])[0] for request in with_examples()]
    assert [(answer.text, answer.new_tokens) for answer in found] == generated


def asked_of(small: ModelSettings, requests: Sequence[Request], plan: MemoryPlan) -> tuple[EngineCore, list[Asked]]:
    runner, family = small_runner(small)
    prompts = family.prompt_builder("{question}")
    found = [
        Asked(
            prompts.build(request.conversation, [len(page.crops) for page in request.pages], request.shared_turns),
            dict(zip(request.page_ids, request.pages, strict=True)),
            request.page_ids,
            shared_pages=request.shared_pages,
        )
        for request in requests
    ]
    return EngineCore(runner, plan), found


@pytest.mark.parametrize("limit", [None, 64, 96])
@pytest.mark.parametrize("slots", [700, 3000])
def test_prefill_batches_and_little_room_change_no_token(
    small: ModelSettings, generated: list[tuple[str, int]], limit: int | None, slots: int
) -> None:
    """Pieces that are cut where a batch is full, and prefixes that are evicted and computed again."""
    core, asked = asked_of(small, with_examples(), MemoryPlan(6, slots, 1 << 14, limit))
    found = drive(core, asked)
    lengths = [len(output[0]) if output else 0 for output in (found[number] for number in range(len(asked)))]
    assert lengths == [count for _, count in generated]


def test_examples_are_computed_once(small: ModelSettings) -> None:
    """Their cost is divided among all, so that each further page costs what it costs itself."""
    requests = [request for request in with_examples(3) if request.shared_turns]
    _, asked = asked_of(small, requests, MemoryPlan(8, 4000, 1 << 14, None))
    heads = {sequence.head for sequence in asked}
    assert len(heads) <= 2  # one behind "User:", one behind "User: "
    for sequence in asked:
        assert sequence.head is not None
        _, length = sequence.head
        assert length < sequence.prompt.prefix_length
        # All of the examples but the last few tokens, which may be others where the prompt goes on.
        ended = sequence.prompt.tokens[length:].count(130)
        assert ended == 4  # latents of the page itself


# --- the file ---


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def folder(tmp_path: Path, grey_png: Png) -> Path:
    for grey in (30, 60, 90):
        grey_png(f"{grey}.png", grey)
    return tmp_path


def settings_with(examples: Path, output: Path | None = None, **changes: Any) -> RunSettings:
    return RunSettings(
        PageSettings(split=Split.NEVER, workers=1),
        questions=QuestionSettings(examples=examples),
        output=OutputSettings(output, Format.CSV, **changes) if output else OutputSettings(),
    )


def run(folder: Path, settings: RunSettings, questions: Sequence[str] = ("q",)) -> FakeEngine:
    engine = FakeEngine()
    with (folder / "stdout").open("w") as stdout:
        run_batch([str(folder / "90.png")], questions, settings, stdout, engine=engine)
    return engine


def test_examples_stand_in_front_of_every_question(folder: Path) -> None:
    file = folder / "examples.csv"
    file.write_text("document,question,answer\n30.png,Who?,Ann\n60.png,When?,May 1\n")
    engine = run(folder, settings_with(file), ("one", "two"))
    shown = (
        Turn("user", (PAGE, "Who?")),
        Turn("assistant", ("Ann",)),
        Turn("user", (PAGE, "When?")),
        Turn("assistant", ("May 1",)),
    )
    assert engine.conversations == [(*shown, Turn("user", (PAGE, text))) for text in ("one", "two")]
    assert {len(page_ids) for _, page_ids in engine.asked} == {3}
    assert len({page_ids for _, page_ids in engine.asked}) == 1
    rows = (folder / "stdout").read_text().splitlines()
    assert "one @30+60+90" in rows[1]
    assert rows[1].split(",")[1] == "1"


def test_examples_stand_behind_a_system_turn_and_may_be_conversations(folder: Path) -> None:
    file = write(
        folder / "examples.jsonl",
        {"question": "Both?", "documents": ["30.png", "60.png"], "answers": ["yes", "Yes"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "30.png"}, {"type": "text", "text": "a"}]}],
         "answer": 7},
    )  # fmt: skip
    system = {"role": "system", "content": "Be brief."}
    questions = write(folder / "q.jsonl", {"messages": [system, {"role": "user", "content": "q"}]})
    engine = FakeEngine()
    with (folder / "stdout").open("w") as stdout:
        run_batch([str(folder / "90.png")], str(questions), settings_with(file), stdout, engine=engine)
    assert engine.conversations == [
        (
            Turn("system", ("Be brief.",)),
            Turn("user", (PAGE, PAGE, "Both?")),
            Turn("assistant", ("yes",)),
            Turn("user", (PAGE, "a")),
            Turn("assistant", ("7",)),
            Turn("user", (PAGE, "q")),
        )
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("question,answer\nWho?,Ann\n", "examples.csv:2: example: bad-question: names no document"),
        ("document,question\n30.png,Who?\n", "examples.csv:2: example: no answer"),
        ("document,question,answer\n30.png,Who?, \n", "examples.csv:2: example: no answer"),
        ("document,question,answer\ngone.png,Who?,a\n", "examples.csv:2: example: bad-question: document 'gone.png'"),
        ("document,question,answer\n*.png,Who?,a\n", r"examples.csv:2: example: \*.png names several documents"),
        ("document,question,answer\n30.png,,a\n", "examples.csv:2: example: bad-question: the question is empty"),
        ("document,question,answer\n", "examples.csv: no examples in it"),
        ("", "examples.csv: no examples in it"),
    ],
)
def test_examples_that_can_not_be_given_name_their_line(folder: Path, content: str, words: str) -> None:
    file = folder / "examples.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_examples(file, QuestionSettings())


def test_pages_of_examples_that_can_not_be_read_end_the_run(folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    for document, page, words in (("broken.pdf", "", "unreadable"), ("30.png", "2", "no-such-page")):
        file = folder / "examples.csv"
        file.write_text(f"document,page,question,answer\n{document},{page},Who?,Ann\n")
        with pytest.raises(InputError, match=f"examples.csv:2: example: {words}"):
            run(folder, settings_with(file))
    with pytest.raises(InputError, match=r"--examples .*gone.csv: No such file"):
        run(folder, settings_with(folder / "gone.csv"))
    with pytest.raises(InputError, match="neither below --root"):
        read_examples(file, QuestionSettings(root=folder / "below"))


def test_other_examples_are_other_settings(folder: Path) -> None:
    file, output = folder / "examples.csv", folder / "out.csv"
    file.write_text("document,question,answer\n30.png,Who?,Ann\n")
    settings = settings_with(file, output, resume=True)
    assert len(run(folder, settings).asked) == 1
    assert run(folder, settings).asked == []
    file.rename(folder / "moved.csv")  # what stands in it is the same
    assert run(folder, settings_with(folder / "moved.csv", output, resume=True)).asked == []
    file.write_text("document,question,answer\n30.png,Who?,Bea\n")
    with pytest.raises(OutputError, match="--examples"):
        run(folder, settings)
    file.write_text("document,question,answer\n30.png,Who?,Ann\n")
    (folder / "30.png").write_bytes((folder / "60.png").read_bytes())
    with pytest.raises(OutputError, match="--examples"):
        run(folder, settings)
    without = dataclasses.replace(settings, questions=QuestionSettings())
    with pytest.raises(OutputError, match="--examples"):
        run(folder, without)


def test_an_output_is_never_the_examples(folder: Path) -> None:
    file = folder / "examples.csv"
    file.write_text("document,question,answer\n30.png,Who?,Ann\n")
    with pytest.raises(OutputError, match=r"examples\.csv"):
        run(folder, settings_with(file, file, overwrite=True))
