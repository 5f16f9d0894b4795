"""Folders that `prepare` writes: they answer as what they were made of, here and in transformers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from idefics_cli.config import Dtype, Quantize
from idefics_cli.diagnostics.environment import verified_digests
from idefics_cli.engine import open_engine
from idefics_cli.engine.native.ops.linear import Linear, linear_class
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from idefics_cli.engine.prepare import prepare
from idefics_cli.engine.shards import Planned, write_shards
from idefics_cli.errors import ModelError, OutputError, UsageError
from idefics_cli.records import Answer
from tests.awq import save_awq
from tests.conftest import Run
from tests.small_checkpoints import CPU, opened, save_checkpoint, settings_of, small_requests

SIZES: dict[str, Any] = {
    "text": {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64},
    "perceiver": {"hidden_size": 128, "resampler_head_dim": 64},
    "vision": {"hidden_size": 128, "intermediate_size": 200},
}
MLP = "model.text_model.layers.0.mlp."
QUANTIZED = [Quantize.INT4, Quantize.INT8, Quantize.FP8]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("m") / "small", generation={"suppress_tokens": [7]}, **SIZES)


def answers(folder: Path, **changes: Any) -> list[Answer]:
    engine = open_engine(settings_of(folder, **changes))
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    assert not any(answer.failure for answer in found)
    return found


def texts(found: list[Answer]) -> list[tuple[str, float]]:
    return [(answer.text, answer.confidence) for answer in found]


def written(folder: Path, to: Path, *, overwrite: bool = False, **changes: Any) -> Path:
    prepare(settings_of(folder, **changes), to, overwrite=overwrite)
    return to


def test_without_quantizing_it_is_the_checkpoint_in_another_dtype(small: Path, tmp_path: Path) -> None:
    exact = written(small, tmp_path / "exact", dtype=Dtype.FLOAT32)
    assert texts(answers(exact)) == texts(answers(small))
    half = written(small, tmp_path / "half", dtype=Dtype.AUTO)
    tensors, stored = load_file(small / "model.safetensors"), load_file(half / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensor.bfloat16()) for name, tensor in tensors.items())
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert {file.name for file in exact.iterdir()} == {file.name for file in small.iterdir()} | {"prepared.json"}
    model = AutoModelForImageTextToText.from_pretrained(half)
    assert model.dtype is torch.bfloat16
    assert model.generation_config.suppress_tokens == [7]


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_quantized_weights_are_taken_as_they_are(quantize: Quantize, small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=quantize)
    assert open_engine(settings_of(folder)).info.settings["--quantize"] == quantize
    layers = []
    for of, given in ((small, quantize), (folder, quantize)):
        checkpoint, _, _ = opened(settings_of(of))
        weights = Weights(CheckpointSource(checkpoint, torch.float32, CPU), given, torch.float32, CPU)
        layers.append([weights.linear([f"{MLP}gate_proj", f"{MLP}up_proj"]), weights.linear([f"{MLP}down_proj"])])
    for there, here in zip(*layers, strict=True):
        assert type(there) is type(here) is linear_class(quantize)
        assert torch.equal(there.weight.view(torch.uint8), here.weight.view(torch.uint8))
    wide = weights.linear(["model.vision_model.encoder.layers.0.mlp.fc2"], bias=True)  # 200 inputs
    assert type(wide) is (linear_class(quantize) if quantize is Quantize.FP8 else Linear)
    assert len({answer.text for answer in answers(folder)}) > 1
    assert answers(folder, quantize=quantize)[0].text == answers(folder)[0].text


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_compressed_tensors_reads_them(quantize: Quantize, small: Path, tmp_path: Path) -> None:
    """In transformers, by that library: the same weights as ours."""
    folder = written(small, tmp_path / "made", quantize=quantize, dtype=Dtype.FLOAT32)
    from transformers import CompressedTensorsConfig

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    theirs = model.state_dict()
    checkpoint, _, _ = opened(settings_of(folder))
    source = CheckpointSource(checkpoint, torch.float32, CPU)
    for name in checkpoint.weight_shapes():
        error = (theirs[name].float() - source(name)).norm() / source(name).norm()
        assert error < 1e-3, name


@pytest.mark.parametrize("quantize", [Quantize.INT4, Quantize.INT8])
def test_a_folder_is_answered_from_the_levels_that_it_holds(quantize: Quantize, small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=quantize)
    checkpoint, _, _ = opened(settings_of(folder))
    source = CheckpointSource(checkpoint, torch.float32, CPU)
    dense = {name: source(name) for name in checkpoint.weight_shapes()}
    plain = shutil.copytree(small, tmp_path / "plain")
    save_file(dense, plain / "model.safetensors", metadata={"format": "pt"})
    found, wanted = answers(folder), answers(plain)
    assert [answer.text for answer in found] == [answer.text for answer in wanted]
    confidences = [answer.confidence for answer in wanted]
    assert [answer.confidence for answer in found] == pytest.approx(confidences, rel=1e-5)


def test_what_stands_in_the_file_is_half_or_less(small: Path, tmp_path: Path) -> None:
    sizes = {}
    for quantize in filter(lambda one: one.is_native, Quantize):
        folder = written(small, tmp_path / quantize, quantize=quantize, dtype=Dtype.AUTO)
        headers = opened(settings_of(folder))[0].tensors()
        sizes[quantize] = sum(
            header.size for name, header in headers.items() if ".mlp." in name and "text_model" in name
        )
    assert sizes[Quantize.NONE] > 1.9 * sizes[Quantize.FP8]
    assert sizes[Quantize.NONE] > 1.9 * sizes[Quantize.INT8] > 3.5 / 2 * sizes[Quantize.INT4]


def test_an_adapter_is_merged(small: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    tensors = {f"base_model.model.{MLP}down_proj.lora_{part}.weight": torch.randn(2, 256) for part in "A"}
    tensors[f"base_model.model.{MLP}down_proj.lora_B.weight"] = torch.randn(128, 2)
    save_file(tensors, adapter / "adapter_model.safetensors")
    given: dict[str, Any] = {"adapter": str(adapter), "adapter_base": "any"}
    made = written(small, tmp_path / "made", dtype=Dtype.FLOAT32, **given)
    assert texts(answers(made)) == texts(answers(small, **given)) != texts(answers(small))
    packed = written(small, tmp_path / "packed", quantize=Quantize.INT4, **given)
    assert texts(answers(packed)) != texts(answers(written(small, tmp_path / "plain", quantize=Quantize.INT4)))
    with pytest.raises(ModelError, match="--adapter can't be merged into weights in int4"):
        open_engine(settings_of(packed, **given))


def test_awq_words_become_int4_without_quantizing_anew(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "awq", generation={}, **SIZES)
    dense = save_awq(folder, 128)
    made = written(folder, tmp_path / "made", quantize=Quantize.INT4)
    checkpoint, _, _ = opened(settings_of(made))
    name = f"{MLP}down_proj.weight"
    assert torch.equal(CheckpointSource(checkpoint, torch.float32, CPU)(name), dense[name])
    plain = written(folder, tmp_path / "plain", dtype=Dtype.FLOAT32)
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    assert texts(answers(plain)) == texts(answers(folder))


def test_another_format_than_that_of_the_folder_is_refused(small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=Quantize.INT4)
    with pytest.raises(ModelError, match="weights prepared in int4 don't run in fp8: leave --quantize out"):
        open_engine(settings_of(folder, quantize=Quantize.FP8))


def test_a_folder_is_never_written_over_unless_it_is_a_prepared_one(small: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("notes", "file", "link"):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="there already, and not a folder that prepare has written"):
                written(small, tmp_path / name, overwrite=overwrite)
    made = written(small, tmp_path / "made")
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        written(small, made)
    before = (made / "model.safetensors").read_bytes()
    written(small, made, overwrite=True, quantize=Quantize.INT8)
    assert (made / "model.safetensors").read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "made", "notes"]
    with pytest.raises(UsageError, match="-o takes the name of a new folder"):
        written(small, Path("/"))


def test_what_prepare_has_not_written_is_never_deleted(small: Path, tmp_path: Path) -> None:
    prepared = written(small, tmp_path / "prepared")
    (prepared / "answers.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"holds answers\.csv, which prepare has not written"):
        written(small, prepared, overwrite=True)
    assert (prepared / "answers.csv").read_text() == "mine"
    home = tmp_path / "home"
    home.mkdir()
    for mark in ("", "{}", '{"sha256": {}}'):
        (home / "prepared.json").write_text(mark)
        with pytest.raises(OutputError, match="not a folder that prepare has written"):
            written(small, home, overwrite=True)
    (prepared / "answers.csv").unlink()
    (tmp_path / "link").symlink_to(prepared)
    with pytest.raises(OutputError, match="a link; name the folder that it leads to"):
        written(small, tmp_path / "link", overwrite=True)
    assert written(small, prepared, overwrite=True).is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "link", "prepared"]


def test_a_file_beside_the_weights_that_cannot_be_read_is_named(small: Path, tmp_path: Path) -> None:
    source = shutil.copytree(small, tmp_path / "source")
    (source / "extra.json").mkdir()
    with pytest.raises(ModelError, match=r"extra\.json: Is a directory"):
        written(source, tmp_path / "prepared")


def test_a_run_that_fails_leaves_nothing(small: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings_of(small), tmp_path / "made", progress=stop)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("x"),
            "chat_template.jinja is not as it was written",
        ),
        (lambda folder: (folder / "prepared.json").write_text("{}"), "prepared.json has no digests"),
        (lambda folder: (folder / "prepared.json").write_text("["), "prepared.json can't be read"),
    ],
)
def test_digests_tell_what_has_changed(damage: Callable[[Path], None], words: str, small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made")
    assert verified_digests(settings_of(folder)) == {"digests": "7 files are as prepare has written them"}
    assert verified_digests(settings_of(small)) == {}
    damage(folder)
    with pytest.raises(ModelError, match=words):
        verified_digests(settings_of(folder))


def test_weights_are_shared_among_files_and_the_parts_of_one_stay_together(tmp_path: Path) -> None:
    tensors = {f"w{number}": {f"w{number}.a": torch.rand(3, 5), f"w{number}.b": torch.arange(3)} for number in range(5)}
    planned = [
        Planned(weight, name, "I64" if name.endswith("b") else "F32", tuple(tensor.shape))
        for weight, parts in tensors.items()
        for name, tensor in parts.items()
    ]
    write_shards(tmp_path, planned, tensors.__getitem__, shard=200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    found: dict[str, Tensor] = {}
    for name in set(index["weight_map"].values()):
        found |= load_file(tmp_path / name)
    assert found.keys() == index["weight_map"].keys()
    for parts in tensors.values():
        assert len({index["weight_map"][name] for name in parts}) == 1
        assert all(torch.equal(found[name], tensor) for name, tensor in parts.items())


@pytest.mark.parametrize(
    "change",
    [
        {"format": "marlin"},
        {"config_groups": {}},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"sparsity_config": {"format": "x"}},
    ],
)
def test_other_kinds_of_compressed_tensors_are_refused(change: dict[str, Any], small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=Quantize.INT4)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="those that idefics-cli prepare writes can"):
        open_engine(settings_of(folder))


def test_parts_that_are_missing_are_named(small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=Quantize.INT4)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{MLP}up_proj.weight_zero_point"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj\.weight_zero_point is missing"):
        open_engine(settings_of(folder)).load()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ignore": ["lm_head", f"{MLP}up_proj"]}, "up_proj are quantized, but ignore in quantization_config names it"),
        ({"ignore": [r"re:.*text_model.*_proj"]}, "are quantized, but ignore in quantization_config names it"),
        ({"ignore": ["re:("]}, "quantization_config: ignore: missing \\)"),
        ({"ignore": "lm_head"}, "quantization_config: ignore: 'lm_head' is no list of names"),
        ({"targets": [f"re:{MLP}"]}, "are quantized, but targets in quantization_config leaves it out"),
        ({"targets": []}, "are quantized, but targets in quantization_config leaves it out"),
        ({"targets": None}, "quantization_config: targets: None is no list of names"),
    ],
)
@pytest.mark.parametrize("quantize", [Quantize.INT4, Quantize.FP8])
def test_settings_that_contradict_the_tensors_are_refused(
    change: dict[str, Any], words: str, quantize: Quantize, small: Path, tmp_path: Path
) -> None:
    folder = written(small, tmp_path / "made", quantize=quantize)
    config = json.loads((folder / "config.json").read_text())
    values = config["quantization_config"]
    (values["config_groups"]["group_0"] if "targets" in change else values).update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        open_engine(settings_of(folder)).load()


def test_patterns_that_agree_with_the_tensors_are_taken(small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=Quantize.INT8)
    before = texts(answers(folder))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["re:model[.]"]
    config["quantization_config"]["ignore"] = ["re:.*embed_tokens", "lm_head"]
    (folder / "config.json").write_text(json.dumps(config))
    assert texts(answers(folder)) == before


@pytest.mark.parametrize("shape", [[128, 256], [256, 127], [0, 0], [-1, 2**62]])
def test_a_stored_shape_that_contradicts_the_words_is_refused(shape: list[int], small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "made", quantize=Quantize.INT8)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{MLP}up_proj.weight_shape"] = torch.tensor(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj\.weight_shape is \(.*\), where its words are \(256, 128\)"):
        open_engine(settings_of(folder)).load()


def test_the_command(small: Path, tmp_path: Path, cli: Run) -> None:
    named = cli("prepare", small, "-o", tmp_path / "two words")
    assert f"use it with --model '{tmp_path / 'two words'}'\n" in named.stdout  # as a shell takes it
    done = cli("prepare", small, "-o", tmp_path / "made", "--quantize", "int8")
    assert done.returncode == 0, done.stderr
    assert "GB of weights in bfloat16, linear layers in int8; use it with --model" in done.stdout
    assert cli("prepare", small, "-o", tmp_path / "made").returncode == 5
    assert cli("prepare", small).returncode == 2
    checked = cli("doctor", "--model", tmp_path / "made", "--warm")
    assert checked.returncode == 0, checked.stderr
    shutil.rmtree(tmp_path / "made")
    settings = dataclasses.replace(settings_of(small), model="./nothing")
    with pytest.raises(ModelError, match="no such folder"):
        prepare(settings, tmp_path / "made")
