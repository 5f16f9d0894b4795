"""Processor, tokenizer, chat template and generation settings from elsewhere than the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from idefics_cli.config import ModelSettings
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.engine import open_engine
from idefics_cli.engine.checkpoint import open_checkpoint
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Answer
from tests.small_checkpoints import save_checkpoint, settings_of, small_requests

WEIGHTS = ("config.json", "model.safetensors")


def parted(folder: Path, **changes: object) -> tuple[Path, Path]:
    """A checkpoint as two folders: weights, and all else."""
    whole = save_checkpoint(folder / "whole", **changes)  # type: ignore[arg-type]
    weights, rest = folder / "weights", Path(shutil.copytree(whole, folder / "rest"))
    weights.mkdir()
    for name in WEIGHTS:
        (rest / name).rename(weights / name)
    return weights, rest


def answers(settings: ModelSettings) -> tuple[list[Answer], str]:
    engine = open_engine(settings)
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    return found, engine.info.settings["engine"].split()[0]


@pytest.mark.parametrize(
    ("generation", "backend"),
    [
        ({"eos_token_id": [131, 103, 121], "suppress_tokens": [58]}, "native"),
        ({"eos_token_id": [131, 103, 121], "sequence_bias": [[[58], -10.0]]}, "transformers"),
    ],
)
def test_parts_of_two_folders_are_one_checkpoint(generation: dict[str, object], backend: str, tmp_path: Path) -> None:
    weights, rest = parted(tmp_path, generation=generation)
    found, by = answers(settings_of(weights, processor=str(rest)))
    whole, _ = answers(settings_of(tmp_path / "whole"))
    assert by == backend
    assert [(answer.text, answer.new_tokens, answer.confidence) for answer in found] == [
        (answer.text, answer.new_tokens, answer.confidence) for answer in whole
    ]
    (rest / "generation_config.json").unlink()
    other, _ = answers(settings_of(weights, processor=str(rest)))
    assert [answer.text for answer in other] != [answer.text for answer in whole]


def test_the_processor_takes_the_place_of_that_of_the_weights_whole(tmp_path: Path) -> None:
    weights = save_checkpoint(tmp_path / "weights", generation={"suppress_tokens": [7]})
    sizes = {"size": {"longest_edge": 300, "shortest_edge": 200}}
    rest = save_checkpoint(tmp_path / "rest", generation={"suppress_tokens": [8]}, images=sizes)
    (rest / "chat_template.jinja").unlink()
    checkpoint = open_checkpoint(settings_of(weights, processor=str(rest)))
    assert checkpoint.processor_config["size"] == sizes["size"]
    assert checkpoint.chat_template is None
    assert checkpoint.tokenizer_file.parent == rest
    assert checkpoint.generation_config["suppress_tokens"] == [7]  # the weights' own
    assert checkpoint.digest() != open_checkpoint(settings_of(weights)).digest()


@pytest.mark.parametrize(
    "missing", [("tokenizer.json",), ("processor_config.json",), ("tokenizer.json", "processor_config.json")]
)
def test_a_checkpoint_without_processor_files_names_the_way_out(missing: tuple[str, ...], tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"{missing[0]}.* is missing in .*: .* --processor HuggingFaceM4/idefics2-8b"):
        open_checkpoint(settings_of(folder))
    whole = save_checkpoint(tmp_path / "whole", generation={})
    with pytest.raises(ModelError, match=rf"^{folder}: {missing[0]}.* is missing"):
        open_checkpoint(settings_of(whole, processor=str(folder)))
    open_checkpoint(settings_of(folder, processor=str(whole)))


def test_a_processor_that_is_nothing(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    with pytest.raises(ModelError, match=r"^\./nothing: no such folder"):
        open_checkpoint(settings_of(folder, processor="./nothing"))
    with pytest.raises(UsageError, match="--processor takes"):
        settings_of(folder, processor=" ")
    for given in ({"processor": str(folder)}, {"adapter": str(folder)}):
        with pytest.raises(UsageError, match="--random-weights goes without --"):
            full_shape_checkpoint(settings_of(folder, **given))
