"""`--longest-edge` and `--shortest-edge`: checked, part of `settings`, and as the stock processor with these sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.config import ModelSettings, PageSettings, Split
from idefics_cli.documents.page import open_document, prepare_page
from idefics_cli.engine import open_engine
from idefics_cli.engine.checkpoint import open_checkpoint
from idefics_cli.engine.families import idefics2_family_of
from idefics_cli.engine.families.idefics2 import Idefics2Config
from idefics_cli.engine.families.published import IDEFICS2_8B
from idefics_cli.engine.native.memory_plan import WorkSizes
from idefics_cli.errors import UsageError
from idefics_cli.records import Document, PreparedPage, Request
from tests.conftest import SAMPLES, Run


def edges(settings: ModelSettings, longest: int | None, shortest: int | None = None) -> ModelSettings:
    return dataclasses.replace(settings, longest_edge=longest, shortest_edge=shortest, max_new_tokens=12)


@pytest.mark.parametrize(("name", "split"), [("small-print.png", True), ("notice.bmp", False)])
def test_answers_are_those_of_the_stock_processor_with_these_sizes(
    name: str, split: bool, tiny_settings: ModelSettings
) -> None:
    with Image.open(SAMPLES / "documents" / name) as opened:
        image = opened.convert("RGB")
    engine = open_engine(edges(tiny_settings, 336, 140))
    page = PreparedPage(engine.info.image_processor.crops(image, split=split), "pillow", 0, 0)
    answer = engine.submit(Request("What is the total?", (page,), ("p",))).result()
    engine.close()
    folder = SAMPLES / "tiny-idefics2"
    processor = Idefics2Processor.from_pretrained(folder)
    processor.image_processor = Idefics2ImageProcessorPil.from_pretrained(
        folder, do_image_splitting=split, size={"longest_edge": 336, "shortest_edge": 140}
    )
    content = [{"type": "image"}, {"type": "text", "text": "What is the total?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[image], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    new = generated[0, inputs["input_ids"].shape[1] :]
    assert answer.text == processor.decode(new, skip_special_tokens=True).strip()
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_pages_are_rendered_and_split_by_the_new_edges(tiny_settings: ModelSettings) -> None:
    document = Document("letter", str(SAMPLES / "documents" / "letter.pdf"))
    info = open_document(document, PageSettings())
    shapes = {}
    for longest in (490, 245):
        processor = idefics2_family_of(open_checkpoint(edges(tiny_settings, longest, 140))).image_processor
        pages = [
            prepare_page(document, info, 1, PageSettings(split=split), processor)
            for split in (Split.NEVER, Split.ALWAYS, Split.AUTO)
        ]
        assert [max(page.crops[-1].shape) for page in pages] == [longest] * 3
        assert max(pages[1].crops[0].shape) == longest  # a quarter as fine as the whole
        shapes[longest] = pages[2].split
    assert shapes == {490: False, 245: True}  # letters are half as many pixels high


@pytest.mark.parametrize(
    ("longest", "shortest", "words"),
    [
        (491, None, "--longest-edge 491: the model has positions for 35 patches of 14 pixels a side: 490 at most"),
        (100, None, "the shortest edge, 196, is more than the longest, 100: give --longest-edge and --shortest-edge"),
        (None, 491, "the shortest edge, 491, is more than the longest, 490"),
        (None, 13, "--shortest-edge 13 is less than a patch: 14 at least"),
        (0, None, "--longest-edge takes a number of pixels above 0"),
        (None, -5, "--shortest-edge takes a number of pixels above 0"),
    ],
)
def test_edges_that_can_not_be_are_refused_with_those_that_can(
    longest: int | None, shortest: int | None, words: str, tiny_settings: ModelSettings
) -> None:
    with pytest.raises(UsageError, match=words):
        open_engine(edges(tiny_settings, longest, shortest))


def test_they_enter_the_settings_by_name_and_nothing_else_changes(tiny_settings: ModelSettings) -> None:
    plain, other = (open_engine(edges(tiny_settings, *given)).info.settings for given in ((None, None), (336, 140)))
    assert {name for name in other if other[name] != plain.get(name)} == {"--longest-edge", "--shortest-edge"}
    assert (other["--longest-edge"], other["--shortest-edge"]) == ("336", "140")


def test_less_is_planned_for_smaller_images() -> None:
    config = Idefics2Config.of(IDEFICS2_8B, "8B")
    whole, half = WorkSizes.of(config, 2), WorkSizes.of(config, 2, edge=490)
    assert half.page == pytest.approx(whole.page / 4)
    assert WorkSizes.of(config, 2, edge=980) == whole


def test_run_resumes_with_the_same_edges_only(cli: Run, tmp_path: Path) -> None:
    document = str(SAMPLES / "documents" / "notice.bmp")

    def run(*options: str) -> tuple[int, str]:
        command = ("run", document, "--ask", "Who?", "-m", "tiny", "-o", tmp_path / "out.jsonl", *options)
        done = cli(*command, "--max-new-tokens", "3", "--device", "cpu")
        return done.returncode, done.stderr

    assert run("--longest-edge", "336")[0] == 0
    row: dict[str, Any] = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["status"] == "ok"
    assert run("--longest-edge", "336", "--resume")[0] == 0
    code, words = run("--resume")
    assert code == 5
    assert "--longest-edge" in words
