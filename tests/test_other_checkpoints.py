"""Kinds of checkpoints that transformers runs: their rows are those of transformers' own processor and `generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, IdeficsProcessor
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from idefics_cli.config import ModelSettings, PageSettings, Quantize, RunSettings, Split
from idefics_cli.engine import open_engine
from idefics_cli.engine.families.processor import render_edge
from idefics_cli.errors import FailureKind, ModelError, UsageError
from idefics_cli.records import Answer, PreparedPage, Request
from idefics_cli.session import Session
from tests.conftest import Run
from tests.other_checkpoints import SAVED, save_idefics1
from tests.small_checkpoints import settings_of

LIMIT = 8
QUESTIONS = ("Who?", "What is the total of it?", "http://127.0.0.1:9/a.png", "When was it paid?")


def image(seed: int, size: tuple[int, int] = (90, 120)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1] // 6, size[0] // 6, 3), dtype=np.uint8)).resize(size)


PAGES = [[image(0)], [image(1, (140, 60))], [image(2)], [image(0), image(3, (60, 70))]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = {**SAVED, "idefics": save_idefics1}
    return {kind: save(tmp_path_factory.mktemp(kind) / kind) for kind, save in saved.items()}


def settings(folder: Path, **changes: Any) -> ModelSettings:
    return settings_of(folder, **({"max_new_tokens": LIMIT} | changes))


def answers(given: ModelSettings, questions: Sequence[str] = QUESTIONS) -> list[Answer]:
    engine = open_engine(given)
    crops = engine.info.image_processor.crops
    futures = []
    for number, (question, images) in enumerate(zip(questions, PAGES, strict=False)):
        pages = tuple(PreparedPage(crops(one, split=False), "pillow", 0, 0) for one in images)
        ids = tuple(f"{number} {index}" for index in range(len(pages)))
        futures.append(engine.submit(Request(question, pages, ids)))
    found = [future.result() for future in futures]
    engine.close()
    return found


def generated(model: Any, tokenizer: Any, inputs: Any, **arguments: Any) -> tuple[str, int, float]:
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=LIMIT,
            return_dict_in_generate=True,
            output_logits=True,
            **arguments,
        )
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    logits = torch.cat(out.logits).float()
    if banned := arguments.get("suppress_tokens"):
        logits[:, banned] = -torch.inf
    logprob = logits.log_softmax(-1).gather(1, new[:, None]).sum()
    return tokenizer.decode(new, skip_special_tokens=True).strip(), len(new), float(logprob.exp())


def by_own_processor(folder: Path) -> list[tuple[str, int, float]]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for question, images in zip(QUESTIONS, PAGES, strict=True):
        content = [*({"type": "image", "image": one} for one in images), {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        found.append(generated(model, processor.tokenizer, inputs, eos_token_id=[2, 131]))
    return found


def by_idefics_processor(folder: Path) -> list[tuple[str, int, float]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for question, images in zip(QUESTIONS, PAGES, strict=True):
        if question.startswith("http"):
            continue  # the processor would fetch it
        prompt = ["User:", *images, f"{question}<end_of_utterance>", "\nAssistant:"]
        inputs = processor(
            text=[prompt], add_end_of_utterance_token=False, return_tensors="pt", add_special_tokens=False
        )
        found.append(generated(model, tokenizer, inputs, eos_token_id=[2, 131], suppress_tokens=[129, 130]))
    return found


def same(found: Sequence[Answer], wanted: Sequence[tuple[str, int, float]]) -> None:
    assert not [answer.failure for answer in found if answer.failure]
    assert [(answer.text, answer.new_tokens) for answer in found] == [one[:2] for one in wanted]
    assert [answer.confidence for answer in found] == pytest.approx([one[2] for one in wanted], rel=1e-3)


@pytest.mark.parametrize("kind", SAVED)
def test_answers_are_those_of_its_own_processor_and_generate(kind: str, folders: dict[str, Path]) -> None:
    found = answers(settings(folders[kind]))
    same(found, by_own_processor(folders[kind]))
    assert len({answer.text for answer in found}) > 1


def test_idefics_answers_as_its_own_processor_and_generate(folders: dict[str, Path]) -> None:
    found = answers(settings(folders["idefics"]))
    # An address is asked as it stands, character by character, and fetched by nobody.
    assert found[2].failure is None
    assert found[2].prompt_tokens - found[0].prompt_tokens == len(QUESTIONS[2]) - len(QUESTIONS[0])
    same([*found[:2], found[3]], by_idefics_processor(folders["idefics"]))
    assert all("28 x 28 pixels" in answer.warning for answer in found)


@pytest.mark.parametrize("kind", ["idefics", *SAVED])
def test_the_image_is_seen(kind: str, folders: dict[str, Path]) -> None:
    found = answers(settings(folders[kind]), ["Who?"] * 3)
    assert len({round(answer.confidence, 12) for answer in found}) == 3


@pytest.mark.parametrize("kind", ["idefics", *SAVED])
def test_batches_answer_the_same_questions_here(kind: str, folders: dict[str, Path]) -> None:
    alone = answers(settings(folders[kind]))
    together = answers(settings(folders[kind], batch_size=4))
    assert {answer.batch_size for answer in alone} == {1}
    assert max(answer.batch_size for answer in together) > 1
    assert [answer.text for answer in together] == [answer.text for answer in alone]


@pytest.mark.parametrize("kind", ["idefics", *SAVED])
def test_generation_settings(kind: str, folders: dict[str, Path]) -> None:
    plain = answers(settings(folders[kind]))
    stop = next(answer.text[1] for answer in plain if len(answer.text) > 2)
    stopped = answers(settings(folders[kind], stop=(stop,)))
    assert [one.text for one in stopped] == [one.text.partition(stop)[0].strip() for one in plain]
    drawn = [[one.text for one in answers(settings(folders[kind], temperature=2.0, seed=1))] for _ in range(2)]
    assert drawn[0] == drawn[1] != [one.text for one in plain]
    assert not [one.failure for one in answers(settings(folders[kind], num_beams=2)) if one.failure]
    chosen = answers(settings(folders[kind], choices=("ab", "No"), max_new_tokens=None))
    assert {one.text for one in chosen} <= {"ab", "No"}
    special = answers(settings(folders[kind]), ["an <image>?"])[0].failure
    assert special is not None
    assert special.kind is FailureKind.BAD_QUESTION


@pytest.mark.parametrize("kind", ["idefics", *SAVED])
def test_what_it_does_not_do_is_refused_by_name(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    for changes, error, words in (
        ({"longest_edge": 300}, UsageError, "--longest-edge is for idefics2, idefics3"),
        ({"quantize": Quantize.INT4}, ModelError, "checkpoints of type"),
    ):
        with pytest.raises(error, match=words):
            open_engine(settings(folder, **changes))
    with pytest.raises(UsageError, match=r"--split always: .*leave --split out"):
        Session(settings=RunSettings(PageSettings(split=Split.ALWAYS), settings(folder)))


@pytest.mark.parametrize("kind", ["idefics", "llava"])
def test_ask_and_run_say_what_it_is(kind: str, folders: dict[str, Path], cli: Run, tmp_path: Path) -> None:
    image(0).save(tmp_path / "page.png")
    output = tmp_path / "out.jsonl"
    command = ("run", tmp_path / "page.png", "--ask", "Who?", "-m", folders[kind], "-o", output, "--device", "cpu")
    done = cli(*command, "--max-new-tokens", str(LIMIT))
    assert done.returncode == 0, done.stderr
    assert "run by transformers" in done.stderr
    row = json.loads(output.read_text())
    (answer,) = answers(settings(folders[kind]), QUESTIONS[:1])
    assert (row["answer"], row["warning"]) == (answer.text, answer.warning)
    assert row["confidence"] == pytest.approx(answer.confidence, rel=1e-3)
    again = cli(*command, "--max-new-tokens", str(LIMIT), "--resume")
    assert again.returncode == 0
    assert len(output.read_text().splitlines()) == 1


def test_code_of_a_checkpoint_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = SAVED["llava"](tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    engine = open_engine(settings(folder))
    with pytest.raises(ModelError, match=r"code of its own|unheard_of"):
        engine.load()
    assert not (tmp_path / "run").exists()


def test_without_a_template_or_a_vision_model_it_is_refused(tmp_path: Path) -> None:
    folder = SAVED["llava"](tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="type llava without a chat template"):
        open_engine(settings(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="type bert, with no vision model"):
        open_engine(settings(folder))


@pytest.mark.parametrize(
    ("given", "edge"),
    [
        ({"size": {"longest_edge": 1456}}, 1456),
        ({"size": {"height": 384, "width": 384}}, 768),
        ({"size": {"shortest_edge": 336}}, 672),
        ({"size": {"shortest_edge": 3136, "longest_edge": 1003520}}, 1191),
        ({"size": {"height": 336, "width": 336}, "image_grid_pinpoints": [[336, 1344], [672, 672]]}, 1344),
        ({"size": 224}, 448),
        ({}, 1960),
        ({"max_pixels": 12845056}, 4096),
    ],
)
def test_pages_are_rendered_as_large_as_the_processor_makes_use_of(given: dict[str, Any], edge: int) -> None:
    assert render_edge(given) == edge
