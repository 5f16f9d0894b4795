"""What a checkpoint asks for is done natively, by transformers, or refused by name: never ignored."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics_cli.config import Quantize
from idefics_cli.engine import open_engine
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer
from tests.small_checkpoints import expected, save_checkpoint, settings_of, small_requests


def answers(folder: Path, **changes: Any) -> tuple[list[Answer], str]:
    """Answers, and what gave them."""
    engine = open_engine(settings_of(folder, **changes))
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    assert not any(answer.failure for answer in found)
    return found, engine.info.settings["engine"].split()[0]


def check(folder: Path, backend: str) -> None:
    found, by = answers(folder)
    assert by == backend
    assert [(answer.text, answer.new_tokens) for answer in found] == expected(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """What a checkpoint answers that asks for nothing."""
    return answers(save_checkpoint(tmp_path_factory.mktemp("plain"), generation={}))[0]


FIRST_TOKENS = [58, 122, 128]
"""The first tokens of answers of the random checkpoint."""


@pytest.mark.parametrize(
    ("generation", "backend"),
    [
        ({"repetition_penalty": 1.7}, "native"),
        ({"no_repeat_ngram_size": 1}, "native"),
        ({"no_repeat_ngram_size": 2}, "native"),
        ({"encoder_repetition_penalty": 1.5, "repetition_penalty": 1.7}, "transformers"),
        ({"eos_token_id": [131, *FIRST_TOKENS], "min_new_tokens": 5}, "native"),
        ({"eos_token_id": [131, 103, 121], "min_length": 40}, "native"),
        ({"suppress_tokens": [103, 121]}, "native"),
        ({"begin_suppress_tokens": FIRST_TOKENS}, "native"),
        ({"bad_words_ids": [[103], [121]]}, "native"),
        ({"bad_words_ids": [[58, 51], [94, 82]]}, "native"),
        ({"eos_token_id": [131, 103], "bad_words_ids": [[103], [121]]}, "native"),
        ({"num_beams": 3}, "transformers"),
        ({"forced_eos_token_id": 131}, "native"),
        ({"sequence_bias": [[[103], -10.0], [[121], -10.0]]}, "transformers"),
        ({"eos_token_id": [131, 103, 121], "exponential_decay_length_penalty": [2, 1.5]}, "transformers"),
        ({"do_sample": True, "temperature": 2.0, "top_k": 3}, "native"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_generation_settings(generation: Mapping[str, Any], backend: str, tmp_path: Path, plain: list[Answer]) -> None:
    folder = save_checkpoint(tmp_path / "m", generation=generation)
    check(folder, backend)
    changed = [answer.text for answer in answers(folder)[0]] != [answer.text for answer in plain]
    assert changed != ("do_sample" in generation)  # the others do ask for something


ARCHITECTURES: dict[str, tuple[dict[str, Any], str]] = {
    "text gelu": ({"text": {"hidden_act": "gelu"}}, "transformers"),
    "vision quick_gelu": ({"vision": {"hidden_act": "quick_gelu"}}, "transformers"),
    "perceiver gelu": ({"perceiver": {"hidden_act": "gelu"}}, "transformers"),
    "qwen3": ({"text": {"model_type": "qwen3"}}, "transformers"),
    "granite": ({"text": {"model_type": "granite", "embedding_multiplier": 3.0}}, "transformers"),
    "llama": ({"text": {"model_type": "llama"}}, "transformers"),
    "longrope": (
        {
            "text": {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.5] * 8,
                    "long_factor": [4.0] * 8,
                    "original_max_position_embeddings": 512,
                }
            }
        },
        "transformers",
    ),
    "linear rope": (
        {"text": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}},
        "transformers",
    ),
    "rope_theta": ({"text": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}}, "native"),
    "sliding window": ({"text": {"sliding_window": 9}}, "native"),
    "more heads": ({"text": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}}, "native"),
    "deeper perceiver": ({"perceiver": {"resampler_depth": 2, "num_key_value_heads": 2}}, "native"),
    "tied": ({"top": {"tie_word_embeddings": True}}, "native"),
    "text tied": ({"text": {"tie_word_embeddings": True}}, "native"),
    "not normalized": ({"images": {"do_normalize": False}}, "native"),
    "not rescaled": ({"images": {"do_rescale": False}}, "native"),
    "other mean": ({"images": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]}}, "native"),
    "one mean for all channels": ({"images": {"image_mean": 0.4, "image_std": 0.7}}, "native"),
    "sharded": ({"max_shard_size": "40KB"}, "native"),
    "float16 file": ({"dtype": torch.float16}, "native"),
    "bfloat16 file": ({"dtype": torch.bfloat16}, "native"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_image_settings_and_files(name: str, tmp_path: Path) -> None:
    changes, backend = ARCHITECTURES[name]
    folder = save_checkpoint(tmp_path / "m", generation={}, **changes)
    check(folder, backend)


@pytest.mark.parametrize(
    ("top", "text"),
    [
        ({"eos_token_id": [131, 103, 121]}, {}),
        ({"eos_token_id": None}, {"eos_token_id": 121}),
        ({"eos_token_id": 121}, {"eos_token_id": 103}),
        ({"repetition_penalty": 1.7}, {}),
        ({}, {"repetition_penalty": 1.7}),
        ({"bad_words_ids": [[103]]}, {}),
    ],
)
def test_generation_settings_that_stand_in_config_json(
    top: Mapping[str, Any], text: Mapping[str, Any], tmp_path: Path
) -> None:
    """As of old, where there is no generation_config.json."""
    folder = save_checkpoint(tmp_path / "m", generation=None)
    config = json.loads((folder / "config.json").read_text())
    config |= top
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    found, _ = answers(folder)
    assert [(answer.text, answer.new_tokens) for answer in found] == expected(folder)


def test_config_json_gives_no_end_where_generation_config_json_has_none(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={}, top={"eos_token_id": [131, 103, 121]})
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 0}))
    found, _ = answers(folder)
    assert [(answer.text, answer.new_tokens) for answer in found] == expected(folder)


def test_the_text_of_an_end_token_that_is_no_special_token_is_kept(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={"eos_token_id": [131, 103, 121]})
    check(folder, "native")
    ended = [answer for answer in answers(folder)[0] if answer.new_tokens < 12]
    assert ended
    assert all(answer.text[-1] in "éß" for answer in ended)


def change(folder: Path, name: str, **values: Any) -> None:
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(settings | values))


def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path) -> None:
    def refused(words: str, **changes: Any) -> None:
        folder = save_checkpoint(tmp_path / words.replace("/", " "), generation={}, **changes)
        with pytest.raises(ModelError, match=words):
            answers(folder)

    refused("do_resize", images={"do_resize": False})
    refused("image_seq_len 7 of the processor is not the model's number of latents, 4", processor={"image_seq_len": 7})
    refused("<image> is token 130 of the tokenizer and 7 of the model", top={"image_token_id": 7})
    refused("resample|is not a valid", images={"resample": 77})


def test_nearest_resampling_is_honoured(tmp_path: Path) -> None:
    from PIL import Image
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    folder = save_checkpoint(tmp_path / "m", generation={}, images={"resample": 0})
    processor = open_engine(settings_of(folder)).info.image_processor
    page = Image.effect_noise((900, 700), 90).convert("RGB")
    theirs = Idefics2ImageProcessorPil.from_pretrained(folder, do_image_splitting=False)
    expected = theirs([page], return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0, 0]
    assert (processor.crops(page, split=False)[0].transpose(2, 0, 1) == expected).all()


@pytest.mark.parametrize("generation", [{}, {"num_beams": 2}], ids=["native", "transformers"])
def test_weights_that_are_missing_or_have_no_place(generation: Mapping[str, Any], tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation=generation)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    extra = {"model.text_model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}
    save_file(tensors | extra, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no place .* 1 weights, model\.text_model\.layers\.2\.mlp\.up_proj\.weight"):
        answers(folder)
    less = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(less, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, lm_head\.weight"):
        answers(folder)
    wrong = tensors | {"lm_head.weight": tensors["lm_head.weight"][:100].clone()}
    save_file(wrong, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"another shape for 1 weights, lm_head\.weight"):
        answers(folder)


def test_quantizing_is_refused_where_transformers_runs(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={"num_beams": 3})
    with pytest.raises(ModelError, match=r"--quantize fp8 .* num_beams 3"):
        open_engine(settings_of(folder, quantize=Quantize.FP8))


def test_older_layouts_are_read(tmp_path: Path, plain: list[Answer]) -> None:
    """preprocessor_config.json, the template in chat_template.json, rope_theta in text_config."""
    folder = save_checkpoint(tmp_path / "m", generation={})
    new = answers(folder)[0]
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    engine = open_engine(settings_of(folder))
    assert engine.info.image_processor == open_engine(settings_of(folder)).info.image_processor
    assert [answer.text for answer in answers(folder)[0]] == [answer.text for answer in new]
    (folder / "processor_config.json").unlink()
    assert [answer.text for answer in answers(folder)[0]] == [answer.text for answer in plain]


def test_a_base_checkpoint_has_no_turns(tmp_path: Path, plain: list[Answer]) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    (folder / "chat_template.jinja").unlink()
    check(folder, "native")
    tokens = [answer.prompt_tokens for answer in answers(folder)[0]]
    assert [with_turns.prompt_tokens - count for with_turns, count in zip(plain, tokens, strict=True)] == [
        len("User:\nAssistant:") + 1
    ] * len(tokens)


def test_an_unknown_kind_of_checkpoint_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    change(folder, "config.json", model_type="bert")
    engine = open_engine(settings_of(folder))
    assert "a checkpoint of type bert, run by transformers" in engine.info.notes[0]
    with pytest.raises(ModelError, match="transformers has no model of its type that takes images and text"):
        engine.load()
    change(folder, "config.json", model_type=None)
    with pytest.raises(ModelError, match=r"config.json names no model_type"):
        open_engine(settings_of(folder))


def test_a_failed_load_is_told_to_every_request(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        open_engine(settings_of(folder))
    folder = save_checkpoint(tmp_path / "n", generation={})
    engine = open_engine(settings_of(folder))
    (folder / "model.safetensors").unlink()
    for request in small_requests()[:2]:
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            engine.submit(dataclasses.replace(request))
    engine.close()


def threads(*names: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in names]


@pytest.mark.parametrize("generation", [{}, {"num_beams": 2}], ids=["native", "transformers"])
@pytest.mark.parametrize("pause", [0.0, 0.005, 0.02, 0.2])
def test_closing_while_weights_are_loaded_leaves_nothing_running(
    pause: float, generation: Mapping[str, Any], tmp_path: Path
) -> None:
    engine = open_engine(settings_of(save_checkpoint(tmp_path / "m", generation=generation)))
    engine.start()
    time.sleep(pause)
    engine.close()
    assert not threads("load", "engine")
    with pytest.raises(ModelError, match="closed"):
        engine.submit(small_requests()[0])
    engine.close()  # once more does no harm


def test_closing_before_anything_is_loaded_loads_nothing(tmp_path: Path) -> None:
    engine = open_engine(settings_of(save_checkpoint(tmp_path / "m", generation={})))
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        engine.submit(small_requests()[0])
    engine.start()
    assert not threads("load", "engine")


def test_a_note_says_that_transformers_answers_and_why(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={"num_beams": 3})
    with contextlib.closing(open_engine(settings_of(folder))) as engine:
        (note,) = engine.info.notes
    assert "run by transformers" in note
    assert "num_beams 3" in note
