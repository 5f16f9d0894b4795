"""Idefics3 and SmolVLM in the native engine: the answers of transformers' own processor and `generate`, token by token."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from idefics_cli.config import AdapterBase, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.prepare import prepare
from idefics_cli.errors import FailureKind, ModelError, UsageError
from idefics_cli.records import PAGE, Answer, PreparedPage, Request, Turn
from tests.other_checkpoints import TILED, save_idefics3
from tests.small_checkpoints import settings_of

LIMIT = 8
IMAGE, FAKE, ENDS = 130, 129, [2, 131]


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)).resize(size)


SHEETS = [picture(0, (90, 120)), picture(1, (140, 60)), picture(2, (30, 30)), picture(3, (300, 20))]
SHOWN = (
    Turn("user", (PAGE, "Who?", PAGE)),
    Turn("assistant", ("Ann\nLee",)),
    Turn("user", ("Compare with ", PAGE, ": who?")),
)
ASKED: list[tuple[tuple[Turn, ...], tuple[int, ...], bool]] = [
    (turns, sheets, split)
    for split in (True, False)
    for turns, sheets in (
        ((Turn("user", (PAGE, "Who?")),), (0,)),
        ((Turn("user", (PAGE, "What is the total of it?")),), (0,)),
        ((Turn("user", (PAGE, "When?")),), (1,)),
        ((Turn("user", (PAGE, PAGE, "Both?")),), (2, 3)),
        (SHOWN, (1, 0, 2)),
    )
]


@pytest.fixture(scope="module", params=TILED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TILED[request.param](tmp_path_factory.mktemp(request.param))


def settings(folder: Path, **changes: Any) -> ModelSettings:
    return settings_of(folder, **({"max_new_tokens": LIMIT} | changes))


def requests(given: ModelSettings) -> list[Request]:
    images = open_engine(given).info.image_processor

    def page(sheet: int, split: bool) -> PreparedPage:
        crops, size = images.crops(SHEETS[sheet], split=split), SHEETS[sheet].size
        return PreparedPage(crops, "pillow", 0, 0, columns=images.columns(*size, split=split))

    return [
        Request("Who?", tuple(page(one, split) for one in sheets), tuple(f"{one} {split}" for one in sheets), turns)
        for turns, sheets, split in ASKED
    ]


def answers(given: ModelSettings, asked: Sequence[Request] | None = None) -> list[Answer]:
    engine = open_engine(given)
    assert engine.info.settings["engine"] == "native"
    found = [future.result() for future in [engine.submit(one) for one in asked or requests(given)]]
    engine.close()
    assert not [answer.failure for answer in found if answer.failure]
    return found


def by_transformers(folder: Path) -> list[tuple[str, int, int, float]]:
    """Text, tokens of answer and prompt, and confidence by transformers' processor, model and `generate` alone."""
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), image_seq_len=4,
        chat_template=(folder / "chat_template.jinja").read_text(),
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found = []
    for turns, sheets, split in ASKED:
        messages = [
            {
                "role": turn.role,
                "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.content],
            }
            for turn in turns
        ]  # fmt: skip
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        sheets_of = [[SHEETS[one] for one in sheets]]
        inputs = processor(text=[text], images=sheets_of, do_image_splitting=split, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=False, max_new_tokens=LIMIT, eos_token_id=ENDS, suppress_tokens=[IMAGE, FAKE],
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        logprob = torch.cat(out.scores).float().log_softmax(-1).gather(1, new[:, None]).sum()
        answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        found.append((answer, len(new), inputs["input_ids"].shape[1], float(logprob.exp())))
    return found


def test_answers_are_those_of_transformers_and_the_same_bits_in_every_batch(folder: Path) -> None:
    alone = answers(settings(folder, batch_size=1))
    wanted = by_transformers(folder)
    assert [(one.text, one.new_tokens, one.prompt_tokens) for one in alone] == [one[:3] for one in wanted]
    assert [one.confidence for one in alone] == pytest.approx([one[3] for one in wanted], rel=1e-3)
    assert len({one.text for one in alone}) > 1
    for batch_size in (7, 32):
        given = settings(folder, batch_size=batch_size)
        together = answers(given, [*requests(given)[::-1], *requests(given)])
        assert max(one.batch_size for one in together) > 1
        bits = [(one.text, one.confidence, one.mean_logprob) for one in alone]
        assert [(one.text, one.confidence, one.mean_logprob) for one in together] == [*bits[::-1], *bits]


def test_examples_that_prompts_begin_with_change_nothing(folder: Path) -> None:
    given = settings(folder)
    plain = [one for one in requests(given) if len(one.turns) == 3]
    shown = [dataclasses.replace(one, shared_turns=2) for one in plain]
    assert [one.text for one in answers(given, shown)] == [one.text for one in answers(given, plain)]


@pytest.mark.parametrize("quantize", [Quantize.INT8, Quantize.INT4, Quantize.FP8])
def test_weights_in_fewer_bits_answer(quantize: Quantize, folder: Path, tmp_path: Path) -> None:
    exact, found = answers(settings(folder)), answers(settings(folder, quantize=quantize))
    assert any(one.confidence != other.confidence for one, other in zip(exact, found, strict=True))
    prepare(settings(folder, quantize=quantize), tmp_path / "prepared")
    assert len(answers(settings(tmp_path / "prepared"))) == len(exact)


def test_generation_settings(folder: Path) -> None:
    chosen = answers(settings(folder, choices=("ab", "No"), max_new_tokens=None))
    assert {one.text for one in chosen} <= {"ab", "No"}
    drawn = [[one.text for one in answers(settings(folder, temperature=2.0, seed=1))] for _ in range(2)]
    assert drawn[0] == drawn[1] != [one.text for one in answers(settings(folder))]


def test_beams_go_to_transformers_with_the_same_prompts_and_pixels(folder: Path) -> None:
    engine = open_engine(settings(folder, num_beams=2))
    assert engine.info.settings["engine"].startswith("transformers")
    asked = requests(settings(folder))
    found = [future.result() for future in [engine.submit(one) for one in asked]]
    engine.close()
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in answers(settings(folder), asked)]


def test_special_tokens_and_edges_out_of_range_are_refused_by_name(folder: Path) -> None:
    engine = open_engine(settings(folder))
    failure = engine.submit(
        dataclasses.replace(requests(settings(folder))[0], turns=(Turn("user", (PAGE, "<image>")),))
    )
    assert failure.result().failure.kind is FailureKind.BAD_QUESTION  # type: ignore[union-attr]
    engine.close()
    for changes, words in (
        ({"longest_edge": 20}, "--longest-edge 20"),
        ({"longest_edge": 5000}, "--longest-edge 5000"),
        ({"shortest_edge": 50}, "--shortest-edge is for idefics2"),
    ):
        with pytest.raises(UsageError, match=words):
            open_engine(settings(folder, **changes))


def test_a_longer_edge_is_more_tiles(folder: Path) -> None:
    images = open_engine(settings(folder, longest_edge=280)).info.image_processor
    tile = images.longest_edge
    assert len(images.crops(SHEETS[2], split=True)) == (-(-280 // tile)) ** 2 + 1


def test_a_text_model_of_another_kind_is_run_by_transformers(tmp_path: Path) -> None:
    given = settings(save_idefics3(tmp_path, text={"attention_bias": True}))
    engine = open_engine(given)
    assert engine.info.settings["engine"].startswith("transformers")
    assert engine.submit(requests(given)[0]).result().failure is None
    engine.close()
    with pytest.raises(ModelError, match="biases in the text model"):
        open_engine(dataclasses.replace(given, quantize=Quantize.INT8))


def test_an_adapter_of_the_family_is_merged_as_peft_does(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    targets = r".*(text_model|modality_projection).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj|\.proj)$"
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    shutil.copytree(folder, merged)
    adapted.merge_and_unload().save_pretrained(merged)
    found = answers(settings(folder, adapter=str(tmp_path / "adapter"), adapter_base=AdapterBase.ANY))
    wanted = by_transformers(merged)
    assert [(one.text, one.new_tokens) for one in found] == [one[:2] for one in wanted]
    assert [one.confidence for one in found] == pytest.approx([one[3] for one in wanted], rel=1e-3)
    assert [one.confidence for one in found] != [one.confidence for one in answers(settings(folder))]
