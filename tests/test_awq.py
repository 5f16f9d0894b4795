"""AWQ checkpoints: words are unpacked, kept, or quantized anew; other layouts are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics_cli.config import Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.linear import Fp8Linear, Int4Linear, Int8Linear
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from idefics_cli.errors import ModelError
from tests.awq import save_awq
from tests.small_checkpoints import CPU, opened, save_checkpoint, settings_of, small_requests

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
PROJECTION = "model.text_model.layers.0.mlp.down_proj"


def answers(folder: Path, **changes: Any) -> list[tuple[str, float]]:
    engine = open_engine(settings_of(folder, **changes))
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    assert not any(answer.failure for answer in found)
    return [(answer.text, answer.confidence) for answer in found]


def both(folder: Path, size: int, **changes: Any) -> tuple[Path, Path]:
    """A checkpoint in AWQ, and one with the weights that it stands for."""
    packed, plain = (save_checkpoint(folder / name, **changes) for name in ("packed", "plain"))
    dense = save_awq(packed, size)
    save_file(dense, plain / "model.safetensors", metadata={"format": "pt"})
    return packed, plain


@pytest.mark.parametrize("size", [16, 32, -1])
def test_words_are_unpacked_to_the_weights_that_they_stand_for(size: int, tmp_path: Path) -> None:
    packed, plain = both(tmp_path, size, generation={})
    checkpoint, _, _ = opened(settings_of(packed))
    wanted = load_file(plain / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        source = CheckpointSource(checkpoint, dtype, CPU)
        assert all(torch.equal(source(name), tensor.to(dtype)) for name, tensor in wanted.items())
        assert all(source(name).is_contiguous() for name in wanted)  # products in fp8 on a GPU take nothing else
    assert checkpoint.weight_shapes() == {name: tuple(tensor.shape) for name, tensor in wanted.items()}


@pytest.mark.parametrize(
    "generation", [{}, {"sequence_bias": [[[103], -10.0], [[121], -10.0]]}], ids=["native", "transformers"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_answers_are_those_of_the_unpacked_checkpoint(generation: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    packed, plain = both(tmp_path, 32, generation=generation, top={"tie_word_embeddings": tied})
    found, wanted = answers(packed), answers(plain)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-4)


@pytest.mark.parametrize("size", [128, 32])
@pytest.mark.parametrize("quantize", [Quantize.FP8, Quantize.INT8, Quantize.INT4])
def test_words_can_be_quantized_anew_and_stay_as_they_are_where_they_fit(
    quantize: Quantize, size: int, tmp_path: Path
) -> None:
    packed, plain = both(tmp_path, size, generation={}, text=WIDE)
    checkpoint, _, _ = opened(settings_of(packed))
    layer = Weights(CheckpointSource(checkpoint, torch.float32, CPU), quantize, torch.float32, CPU).linear([PROJECTION])
    kinds = {Quantize.FP8: Fp8Linear, Quantize.INT8: Int8Linear, Quantize.INT4: Int4Linear}
    assert type(layer) is kinds[quantize]
    rows = torch.randn(3, 256)
    wanted = rows @ load_file(plain / "model.safetensors")[f"{PROJECTION}.weight"].t()
    found = layer(rows, torch_ops)
    error = float((found - wanted).norm() / wanted.norm())
    if quantize is Quantize.INT4 and size == 128:
        assert error < 1e-6
    else:
        assert 1e-4 < error < 0.2
    assert answers(packed, quantize=quantize)


def test_an_adapter_is_merged_into_unpacked_weights(tmp_path: Path) -> None:
    packed, plain = both(tmp_path, 128, generation={}, text=WIDE)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    tensors = {f"base_model.model.{PROJECTION}.lora_A.weight": torch.randn(2, 256)}
    tensors[f"base_model.model.{PROJECTION}.lora_B.weight"] = torch.randn(128, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"adapter": str(folder), "adapter_base": "any"}
    found, wanted = answers(packed, **given), answers(plain, **given)
    assert [text for text, _ in found] == [text for text, _ in wanted] != [text for text, _ in answers(packed)]
    quantized, plain_text = answers(packed, quantize=Quantize.INT4, **given), answers(packed, quantize=Quantize.INT4)
    assert quantized != plain_text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": "gemv"}, "version gemv"),
        ({"version": "marlin"}, "version marlin"),
        ({"bits": 8}, "bits 8"),
        ({"zero_point": False}, "zero_point False"),
        ({"desc_act": True}, "desc_act True"),
        ({"something": 3}, "something 3"),
        ({"group_size": "x"}, "group_size x"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": 64}, "qzeros is I32 .* ask for I32"),
        ({"quant_method": "gptq"}, "weights quantized by gptq can't be loaded"),
    ],
)
def test_other_layouts_are_refused_by_name(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    save_awq(folder, 32, **({"group_size": 32} | values))
    with pytest.raises(ModelError, match=words):
        open_engine(settings_of(folder)).load()


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_words_without_their_zeros_or_scales_are_refused(part: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={})
    save_awq(folder, 32)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"{PROJECTION}.{part}"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{PROJECTION}.{part} is missing"):
        open_engine(settings_of(folder)).load()
