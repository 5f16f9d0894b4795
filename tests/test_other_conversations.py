"""Conversations on checkpoints that transformers runs: rows are those of their own processor and `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, IdeficsProcessor
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from idefics_cli.config import (
    Across,
    ModelSettings,
    PageSettings,
    QuestionSettings,
    RunSettings,
)
from idefics_cli.engine import open_engine
from idefics_cli.errors import FailureKind, ModelError
from idefics_cli.records import PAGE, Answer, PreparedPage, Request, Turn
from idefics_cli.session import Session
from tests.conftest import Run
from tests.other_checkpoints import SAVED, TEMPLATE, save_gemma3, save_idefics1, save_llava
from tests.small_checkpoints import settings_of
from tests.test_other_checkpoints import LIMIT, generated, image, same

EXAMPLES = (
    Turn("user", (PAGE, "What is the total?")),
    Turn("assistant", ("12.50",)),
    Turn("user", (PAGE, PAGE, "When?")),
    Turn("assistant", ("May 1",)),
)
CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "several turns": (
        Turn("user", (PAGE, "What is the total?")),
        Turn("assistant", ("12.50",)),
        Turn("user", ("And the date?",)),
        Turn("assistant", ("May 1",)),
        Turn("user", ("Who signed?",)),
    ),
    "several images in a turn": (Turn("user", (PAGE, PAGE, PAGE, "Which is dearer?")),),
    "images in several turns": (
        Turn("user", (PAGE, "Who?")),
        Turn("assistant", ("Ann\nLee",)),
        Turn("user", (PAGE, PAGE, "And here?")),
    ),
    "examples": (*EXAMPLES, Turn("user", (PAGE, "Who?"))),
    "examples and a turn": (
        *EXAMPLES,
        Turn("user", (PAGE, "Who?")),
        Turn("assistant", ("Ann",)),
        Turn("user", ("Why?",)),
    ),
    "a question by itself": (Turn("user", (PAGE, "Who?")),),
}
INTERLEAVED: dict[str, tuple[Turn, ...]] = {
    "text before a page": (Turn("user", ("Look at ", PAGE, "this: who?")),),
    "texts between pages": (Turn("user", (PAGE, "first", PAGE, PAGE, " second ", PAGE, "which?")),),
    "a page given back": (Turn("user", ("Show it.",)), Turn("assistant", ("Here: ", PAGE)), Turn("user", ("Who?",))),
    "spaces between pages": (Turn("user", (PAGE, " ", PAGE, "who?")),),
}
SIZES = [(90, 120), (140, 60), (60, 70), (120, 120)]
SYSTEM = Turn("system", ("Be brief.",))
Reference = Callable[[Path, Sequence[tuple[Turn, ...]]], list[tuple[str, int, float]]]


def images_of(turns: Sequence[Turn]) -> list[Image.Image]:
    count = sum(part is PAGE for turn in turns for part in turn.content)
    return [image(at, SIZES[at % len(SIZES)]) for at in range(count)]


def settings(folder: Path, **changes: Any) -> ModelSettings:
    return settings_of(folder, **({"max_new_tokens": LIMIT} | changes))


def answers(given: ModelSettings, conversations: Sequence[tuple[Turn, ...]]) -> list[Answer]:
    engine = open_engine(given)
    crops = engine.info.image_processor.crops
    futures = []
    for number, turns in enumerate(conversations):
        pages = tuple(PreparedPage(crops(one, split=False), "pillow", 0, 0) for one in images_of(turns))
        ids = tuple(f"{number} {index}" for index in range(len(pages)))
        futures.append(engine.submit(Request("?", pages, ids, turns)))
    found = [future.result() for future in futures]
    engine.close()
    return found


def by_own_processor(folder: Path, conversations: Sequence[tuple[Turn, ...]]) -> list[tuple[str, int, float]]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = []
    for turns in conversations:
        shown = iter(images_of(turns))
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": next(shown)}
                    for part in turn.content
                ],
            }
            for turn in turns
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        found.append(generated(model, processor.tokenizer, inputs, eos_token_id=[2, 131]))
    return found


def idefics_items(turns: Sequence[Turn]) -> list[str | Image.Image]:
    """The list that the model's card hands to its processor: texts and images as they come."""
    shown = iter(images_of(turns))
    items: list[str | Image.Image] = []
    for number, turn in enumerate(turns):
        name = f"{turn.role.capitalize()}:"
        content = list(turn.content)
        if isinstance(content[0], str):
            content[0] = f"{name} {content[0]}"
        else:
            content.insert(0, name)
        if number:
            content[0] = f"\n{content[0]}"
        if isinstance(content[-1], str):
            content[-1] = f"{content[-1]}<end_of_utterance>"
        else:
            content.append("<end_of_utterance>")
        items += [part if isinstance(part, str) else next(shown) for part in content]
    return [*items, "\nAssistant:"]


def base_items(turns: Sequence[Turn]) -> list[str | Image.Image]:
    """Questions and answers as lines, without turns; a question by itself as it is."""
    shown = iter(images_of(turns))
    items: list[str | Image.Image] = []
    for number, turn in enumerate(turns, 1):
        *before, last = turn.content
        if turn.role == "assistant":
            items.append(f" {last}\n")
            continue
        items += [next(shown) for _ in before]
        items.append(str(last) if len(turns) == 1 else f"Question: {last} Answer:")
        assert number % 2
    return items


def by_idefics_processor(folder: Path, conversations: Sequence[tuple[Turn, ...]]) -> list[tuple[str, int, float]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    has_turns = "<end_of_utterance>" in tokenizer.get_vocab()
    processor = IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = []
    for turns in conversations:
        inputs = processor(
            text=[joined(idefics_items(turns) if has_turns else base_items(turns))], add_end_of_utterance_token=False,
            return_tensors="pt", add_special_tokens=False,
        )  # fmt: skip
        ends = [2, 131] if has_turns else [2]
        found.append(generated(model, tokenizer, inputs, eos_token_id=ends, suppress_tokens=[129, 130]))
    return found


def joined(items: Sequence[str | Image.Image]) -> list[str | Image.Image]:
    """Neighbouring texts as one: the processor drops the spaces around each."""
    found: list[str | Image.Image] = []
    for item in items:
        if found and isinstance(item, str) and isinstance(found[-1], str):
            found[-1] += item
        else:
            found.append(item)
    return found


def save_idefics1_base(folder: Path) -> Path:
    """An Idefics whose tokenizer knows no turns."""
    save_idefics1(folder)
    tokenizer = (folder / "tokenizer.json").read_text()
    assert "<end_of_utterance>" in tokenizer
    (folder / "tokenizer.json").write_text(tokenizer.replace("<end_of_utterance>", "<something_else>"))
    own = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(own.replace("<end_of_utterance>", "<something_else>"))
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], Reference]] = {
    **{kind: (save, by_own_processor) for kind, save in SAVED.items()},
    "idefics": (save_idefics1, by_idefics_processor),
    "idefics base": (save_idefics1_base, by_idefics_processor),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp("saved") / "m") for kind, (save, _) in KINDS.items()}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, list[Answer]]:
    """The answers of each kind to all conversations, one by one."""
    return {kind: answers(settings(folder), list(CONVERSATIONS.values())) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_those_of_its_own_processor_and_generate(
    kind: str, folders: dict[str, Path], alone: dict[str, list[Answer]]
) -> None:
    wanted = KINDS[kind][1](folders[kind], list(CONVERSATIONS.values()))
    same(alone[kind], wanted)
    assert len({text for text, *_ in wanted}) > 2


@pytest.mark.parametrize("kind", ["llava", "gemma3", "mllama", "idefics"])
def test_texts_stand_between_pages(kind: str, folders: dict[str, Path]) -> None:
    found = answers(settings(folders[kind]), list(INTERLEAVED.values()))
    same(found, KINDS[kind][1](folders[kind], list(INTERLEAVED.values())))
    assert not any("chat template" in answer.warning for answer in found)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_prompts_with_different_numbers_of_images_answer_as_alone(
    kind: str, folders: dict[str, Path], alone: dict[str, list[Answer]]
) -> None:
    found = answers(settings(folders[kind], batch_size=len(CONVERSATIONS)), list(CONVERSATIONS.values()))
    assert max(answer.batch_size for answer in found) > 1
    one = alone[kind]
    assert [(a.text, a.new_tokens, a.prompt_tokens) for a in found] == [
        (a.text, a.new_tokens, a.prompt_tokens) for a in one
    ]
    assert [a.confidence for a in found] == pytest.approx([a.confidence for a in one], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_and_every_turn_is_seen(kind: str, folders: dict[str, Path]) -> None:
    """Another earlier answer, and other pages before, are other answers."""
    turns = CONVERSATIONS["images in several turns"]
    other = (turns[0], Turn("assistant", ("Bea",)), turns[2])
    engine = open_engine(settings(folders[kind]))
    crops = engine.info.image_processor.crops
    pages = [PreparedPage(crops(image(seed), split=False), "pillow", 0, 0) for seed in range(4)]
    asked = [(turns, (0, 1, 2)), (other, (0, 1, 2)), (turns, (3, 1, 2)), (turns, (0, 3, 2)), (turns, (0, 1, 3))]
    futures = [
        engine.submit(Request("?", tuple(pages[at] for at in chosen), tuple(map(str, chosen)), said))
        for said, chosen in asked
    ]
    found = [future.result() for future in futures]
    engine.close()
    assert not [answer.failure for answer in found if answer.failure]
    assert len({answer.mean_logprob for answer in found}) == len(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_turn_is_said_in_its_place_or_in_the_first_of_the_user(kind: str, folders: dict[str, Path]) -> None:
    turns = CONVERSATIONS["images in several turns"]
    folded = (Turn("user", ("Be brief.\n\n", *turns[0].content)), *turns[1:])
    with_system, wanted, without = answers(settings(folders[kind]), [(SYSTEM, *turns), folded, turns])
    assert not with_system.failure
    assert with_system.confidence != without.confidence
    if kind in ("llava", "llava_next", "mllama"):
        (reference,) = by_own_processor(folders[kind], [(SYSTEM, *turns)])
        assert (with_system.text, with_system.new_tokens) == reference[:2]
    elif kind != "idefics base":  # there it stands before all that is asked
        assert (with_system.text, with_system.confidence) == (wanted.text, wanted.confidence)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_behind_a_conversation(kind: str, folders: dict[str, Path]) -> None:
    given = settings(folders[kind], choices=("ab", "No"), max_new_tokens=None)
    found = answers(given, list(CONVERSATIONS.values()))
    assert not [answer.failure for answer in found if answer.failure]
    assert {answer.text for answer in found} <= {"ab", "No"}


@pytest.mark.parametrize("kind", ["idefics", "idefics base"])
def test_an_address_in_a_turn_is_asked_as_it_stands(kind: str, folders: dict[str, Path]) -> None:
    """Fetching it would fail, since nobody listens there; a character is a token."""
    address = "http://127.0.0.1:9/a.png"

    def said(text: str) -> tuple[Turn, ...]:
        return (Turn("user", (PAGE, text)), Turn("assistant", (text,)), Turn("user", (text,)))

    found, other = answers(settings(folders[kind]), [said(address), said("x" * len(address))])
    assert found.failure is None
    assert found.prompt_tokens == other.prompt_tokens
    assert found.mean_logprob != other.mean_logprob


def test_pages_that_the_template_moves_are_a_warning(folders: dict[str, Path]) -> None:
    before, plain = answers(
        settings(folders["llava_next"]), [INTERLEAVED["text before a page"], CONVERSATIONS["several turns"]]
    )
    assert before.warning.startswith("the chat template puts the pages of a turn before its texts")
    assert "chat template" not in plain.warning
    same([before], by_own_processor(folders["llava_next"], [INTERLEAVED["text before a page"]]))


def llava_with(folder: Path, template: str) -> Path:
    save_llava(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + TEMPLATE
LAST_TURN = TEMPLATE.replace("for m in messages", "for m in messages[-1:]")
ONE_IMAGE = (
    "{% set seen = namespace(one=false) %}" + TEMPLATE.replace("<image>", "{% if not seen.one %}<image>{% endif %}"
    "{% set seen.one = true %}")
)  # fmt: skip
TEXT_ONLY = TEMPLATE.replace(
    "{{ m['role'] }}:", "{{ m['role'] }}:{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "name", "words"),
    [
        (ONE_TURN, "several turns", "the chat template failed: one turn only"),
        (LAST_TURN, "several turns", "the chat template writes 0 images where the conversation has 1"),
        (ONE_IMAGE, "several images in a turn", "the chat template writes 1 images where the conversation has 3"),
        (ONE_IMAGE, "images in several turns", "the chat template writes 1 images where the conversation has 3"),
        (TEXT_ONLY, "several turns", "the chat template does not take a turn's parts, only a text"),
    ],
)
def test_what_a_template_can_not_say_fails_by_name(tmp_path: Path, template: str, name: str, words: str) -> None:
    folder = llava_with(tmp_path / "m", template)
    conversations = [CONVERSATIONS[name], CONVERSATIONS["a question by itself"]]
    failed, plain = answers(settings(folder, batch_size=2), conversations)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.BAD_QUESTION
    assert failed.failure.detail == f"{folder}: {words}"
    same([plain], by_own_processor(folder, conversations[1:]))


def test_turns_that_a_template_leaves_out_fail(tmp_path: Path) -> None:
    folder = llava_with(tmp_path / "m", TEMPLATE.replace("{{ m['role'] }}:", "").replace(
        "for m in messages", "for m in messages if m['role'] != 'assistant'"))  # fmt: skip
    (failed,) = answers(settings(folder), [CONVERSATIONS["several turns"]])
    assert failed.failure is not None
    assert "leaves out or moves what a turn says" in failed.failure.detail


def test_a_template_that_refuses_a_question_about_a_page_is_an_error_at_the_start(tmp_path: Path) -> None:
    folder = llava_with(tmp_path / "m", "{{ raise_exception('not here') }}")
    with pytest.raises(ModelError, match="the chat template failed: not here"):
        open_engine(settings(folder))


def test_what_its_processor_does_not_take_fails_by_name(tmp_path: Path) -> None:
    """What stands for an image can't be told here, and the processor counts for itself."""
    folder = save_gemma3(tmp_path / "m")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<start_of_image>'", "'<start_of_image>' * (1 + loop.index0)"))
    template.write_text("{% if messages | length == 1 %}<start_of_image>{% endif %}" + template.read_text())
    (failed,) = answers(settings(folder), [CONVERSATIONS["several images in a turn"]])
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.BAD_QUESTION
    assert "its own processor does not take a prompt with 3 pages: " in failed.failure.detail
    assert "Found total 7 <start_of_image> tokens and 3 images" in failed.failure.detail


def test_special_tokens_and_no_page_are_refused(folders: dict[str, Path]) -> None:
    turns = (Turn("user", (PAGE, "a")), Turn("assistant", ("<image>",)), Turn("user", ("b",)))
    for kind in KINDS:
        special, nothing = answers(settings(folders[kind]), [turns, (Turn("user", ("Who?",)),)])
        assert special.failure is not None
        assert "turn 2 of the conversation holds the model's special token <image>" in special.failure.detail
        assert nothing.failure is not None
        assert "there is no page" in nothing.failure.detail


# --- as a user runs them ---


def saved_pages(folder: Path, count: int) -> list[str]:
    """Pages as `images_of` makes them, in files."""
    for at in range(count):
        image(at, SIZES[at]).save(folder / f"{at}.png")
    return [f"{at}.png" for at in range(count)]


def lines_of(turns: Sequence[Turn], pages: Sequence[str]) -> str:
    """A conversation as a line of a questions file."""
    shown = iter(pages)
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "path": next(shown)}
                for part in turn.content
            ],
        }
        for turn in turns
    ]
    return json.dumps({"messages": messages}) + "\n"


@pytest.mark.parametrize("kind", ["llava", "idefics"])
def test_rows_of_a_questions_file_and_resume(kind: str, folders: dict[str, Path], cli: Run, tmp_path: Path) -> None:
    pages = saved_pages(tmp_path, 4)
    questions, output = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    several = CONVERSATIONS["several turns"]
    asked = [several, CONVERSATIONS["images in several turns"]]
    questions.write_text(
        "".join(lines_of(turns, pages) for turns in asked)
        + json.dumps({"question": "Which is dearer?", "documents": pages[:3]})
        + "\n"
    )
    command = ("run", "-q", questions, "-o", output, "-m", folders[kind], "--device", "cpu", "--max-new-tokens", "8")
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    asked.append(CONVERSATIONS["several images in a turn"])
    for row, (text, count, confidence) in zip(rows, KINDS[kind][1](folders[kind], asked), strict=True):
        assert (row["answer"], row["new_tokens"]) == (text, count)
        assert row["confidence"] == pytest.approx(confidence, rel=1e-3)
    assert [row["document"].count(";") for row in rows] == [0, 2, 2]
    assert len({row["key"] for row in rows}) == 3
    # Another earlier answer is another row; the others are kept.
    other = (several[0], Turn("assistant", ("13.50",)), *several[2:])
    questions.write_text(questions.read_text() + lines_of(other, pages))
    assert cli(*command, "--resume").returncode == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found) == 4
    assert found[3]["key"] not in {row["key"] for row in rows}


@pytest.mark.parametrize("kind", ["gemma3", "idefics"])
def test_examples_stand_before_every_question_and_are_settings(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each with its page, then the question about another; other examples are other settings."""
    pages = saved_pages(tmp_path, 2)
    file = tmp_path / "examples.csv"
    file.write_text(f"document,question,answer\n{pages[0]},What is the total?,12.50\n")

    def rows() -> list[Any]:
        given = RunSettings(PageSettings(workers=1), settings(folders[kind]), QuestionSettings(examples=file))
        with Session(settings=given) as session:
            return list(session.run([str(tmp_path / pages[1])], ["Who?", "Why?"]))

    found = rows()
    shown = CONVERSATIONS["examples"][:2]
    wanted = KINDS[kind][1](folders[kind], [(*shown, Turn("user", (PAGE, text))) for text in ("Who?", "Why?")])
    assert [(row.answer, row.new_tokens, row.status) for row in found] == [(*one[:2], "ok") for one in wanted]
    file.write_text(f"document,question,answer\n{pages[0]},What is the total?,13.50\n")
    other = rows()
    assert other[0].confidence != found[0].confidence
    assert other[0].settings != found[0].settings
    assert other[0].key == found[0].key


@pytest.mark.parametrize("kind", ["llava_next", "idefics"])
def test_a_chat_about_several_documents(kind: str, folders: dict[str, Path], cli: Run, tmp_path: Path) -> None:
    pages = saved_pages(tmp_path, 2)
    command = ("ask", *pages, "Who?", "--together", "--chat", "--json", "-m", folders[kind], "--device", "cpu")
    done = cli(*command, "--max-new-tokens", "8", stdin="And the date?\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    opening = Turn("user", (PAGE, PAGE, "Who?"))
    turns = (opening, Turn("assistant", (first["answer"],)), Turn("user", ("And the date?",)))
    (wanted,) = KINDS[kind][1](folders[kind], [(opening,)])
    assert (first["answer"], first["new_tokens"]) == wanted[:2]
    if first["answer"]:
        (wanted,) = KINDS[kind][1](folders[kind], [turns])
        assert (second["answer"], second["new_tokens"]) == wanted[:2]
    assert (first["document"], second["document"]) == ("0.png; 1.png",) * 2


def test_pages_of_a_document_across_together(folders: dict[str, Path], tmp_path: Path) -> None:
    first, *others = (image(at, SIZES[at]) for at in range(3))
    first.save(tmp_path / "pages.tiff", save_all=True, append_images=others)
    given = RunSettings(PageSettings(across=Across.TOGETHER, workers=1), settings(folders["idefics"]))
    with Session(settings=given) as session:
        row = session.ask(str(tmp_path / "pages.tiff"), "Which is dearer?")
    (wanted,) = by_idefics_processor(folders["idefics"], [CONVERSATIONS["several images in a turn"]])
    assert (row.answer, row.new_tokens, row.page) == (*wanted[:2], "1-3")


def test_a_chat_and_examples_that_a_template_can_not_say_are_refused_at_the_start(cli: Run, tmp_path: Path) -> None:
    (page,) = saved_pages(tmp_path, 1)
    (tmp_path / "examples.csv").write_text(f"document,question,answer\n{page},Who?,Ann\n")
    one_turn = llava_with(tmp_path / "turn", ONE_TURN)
    one_image = llava_with(tmp_path / "image", ONE_IMAGE)
    options = ("--device", "cpu", "--max-new-tokens", "4")
    chat = cli("ask", page, "--chat", "-m", one_turn, *options, stdin="Who?\n", cwd=tmp_path)
    assert (chat.returncode, chat.stdout) == (4, "")
    assert f"--chat: {one_turn}: the chat template failed: one turn only" in chat.stderr
    # Several turns about one page it does say.
    chat = cli("ask", page, "Who?", "--chat", "-m", one_image, *options, stdin="When?\n", cwd=tmp_path)
    assert (chat.returncode, len(chat.stdout.splitlines())) == (0, 2)
    examples = QuestionSettings(examples=tmp_path / "examples.csv")
    for folder, words in ((one_turn, "failed: one turn only"), (one_image, "writes 1 images where the conversation")):
        given = RunSettings(model=settings(folder), questions=examples)
        with pytest.raises(ModelError, match=f"--examples: {folder}: the chat template {words}"):
            Session(settings=given)
    # A row that can't be asked is a failed one, and the others are answered.
    lines = lines_of(CONVERSATIONS["several turns"], [page]) + json.dumps({"question": "Who?", "document": page})
    done = cli("run", "-q", "-", "-o", "-", "--format", "jsonl", "-m", one_turn, *options, stdin=lines, cwd=tmp_path)
    failed, plain = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 6
    assert failed["error"] == f"bad-question: {one_turn}: the chat template failed: one turn only"
    assert plain["status"] == "ok"
