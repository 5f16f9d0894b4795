from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine.checkpoint import load_model, open_checkpoint, samples_folder
from idefics_cli.errors import ModelError
from tests.conftest import SAMPLES

TINY = SAMPLES / "tiny-idefics2"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("maker", "state.pt"))
    return folder


def test_the_embedded_model_is_small_enough_to_ship() -> None:
    sizes = [file.stat().st_size for file in TINY.glob("*.safetensors")]
    assert sum(sizes) <= 32 * 2**20
    assert max(sizes) < 16 * 2**20
    assert samples_folder() == SAMPLES


def test_a_folder_loads_as_the_embedded_model_does(copy: Path) -> None:
    checkpoint = open_checkpoint(ModelSettings(str(copy), device=Device.CPU))
    assert (checkpoint.geometry.longest_edge, checkpoint.geometry.shortest_edge) == (490, 196)
    assert checkpoint.dtype is torch.float32
    assert checkpoint.normalization.mean == (0.5, 0.5, 0.5)
    model = load_model(checkpoint)
    assert model.dtype is torch.float32
    assert not model.training


def test_dtype_is_chosen() -> None:
    assert open_checkpoint(ModelSettings("tiny", device=Device.CPU, dtype=Dtype.BFLOAT16)).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["no-such-folder/at-all/here", "/nowhere", "not a name"])
def test_a_checkpoint_that_is_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="--model takes"):
        open_checkpoint(ModelSettings(name))


def test_another_kind_of_model(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="a bert checkpoint; idefics-cli runs idefics2"):
        open_checkpoint(ModelSettings(str(copy)))


def test_pickled_weights_are_never_loaded(copy: Path) -> None:
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    torch.save({"x": torch.zeros(1)}, copy / "pytorch_model.bin")
    checkpoint = open_checkpoint(ModelSettings(str(copy), device=Device.CPU))
    with pytest.raises(ModelError, match="safetensors"):
        load_model(checkpoint)


def test_damaged_and_missing_weights(copy: Path) -> None:
    checkpoint = open_checkpoint(ModelSettings(str(copy), device=Device.CPU))
    shard = copy / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="can't load"):
        load_model(checkpoint)
    shard.write_bytes(whole)
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    lost = next(name for name in index["weight_map"] if "lm_head" in name)
    del index["weight_map"][lost]
    from safetensors.torch import load_file, save_file

    for file in copy.glob("*.safetensors"):
        tensors = load_file(file)
        if tensors.pop(lost, None) is not None:
            save_file(tensors, file, metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks 1 weights, lm_head\.weight"):
        load_model(checkpoint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="--device cpu"):
        open_checkpoint(ModelSettings("tiny", device=Device.CUDA))
