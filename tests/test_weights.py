from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from idefics_cli.config import Quantize
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.linear import Fp8Linear
from idefics_cli.engine.native.weights import CheckpointSource, RandomSource, Weights
from idefics_cli.errors import ModelError
from tests.small_checkpoints import CPU, opened, save_checkpoint, settings_of

GATE, UP = (f"model.text_model.layers.0.mlp.{part}_proj" for part in ("gate", "up"))
FC = "model.vision_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"), max_shard_size="30KB")


def test_tensors_of_all_files_are_read_in_the_dtype_of_the_model(folder: Path) -> None:
    checkpoint, _, _ = opened(settings_of(folder))
    assert len(checkpoint.weight_files()) > 1
    stored = {name: tensor for file in checkpoint.weight_files() for name, tensor in load_file(file).items()}
    for dtype in (torch.float32, torch.bfloat16):
        source = CheckpointSource(checkpoint, dtype, CPU)
        assert all(torch.equal(source(name), tensor.to(dtype)) for name, tensor in stored.items())


def test_products_that_share_their_input_are_joined(folder: Path) -> None:
    checkpoint, _, _ = opened(settings_of(folder))
    source = CheckpointSource(checkpoint, torch.float32, CPU)
    weights = Weights(source, Quantize.NONE, torch.float32, CPU)
    joined = weights.linear([GATE, UP])
    expected = torch.cat([source(f"{GATE}.weight"), source(f"{UP}.weight")])
    assert torch.equal(
        joined(torch.eye(expected.shape[1]), torch_ops).t(), expected
    )  # a layer may lay its weight out anew
    assert joined.bias is None
    with_bias = weights.linear([FC], bias=True)
    assert with_bias.bias is not None
    assert torch.equal(with_bias.bias, source(f"{FC}.bias"))
    assert isinstance(Weights(source, Quantize.FP8, torch.float32, CPU).linear([GATE]), Fp8Linear)


def test_layers_come_in_their_order_and_errors_come_through(folder: Path) -> None:
    weights = Weights(lambda name: torch.zeros(1), Quantize.NONE, torch.float32, CPU)
    assert weights.layers(lambda index: index, 9) == list(range(9))

    def build(index: int) -> int:
        raise ModelError("damaged")

    with pytest.raises(ModelError, match="damaged"):
        weights.layers(build, 3)


def test_weights_that_are_not_wanted_any_more_are_not_read(folder: Path) -> None:
    checkpoint, _, _ = opened(settings_of(folder))
    source, answers = CheckpointSource(checkpoint, torch.float32, CPU), iter([False, False, True])
    weights = Weights(source, Quantize.NONE, torch.float32, CPU, is_cancelled=lambda: next(answers))
    weights.tensor(f"{GATE}.weight")
    with pytest.raises(ModelError, match="closed"):
        weights.linear([GATE, UP])


def test_damaged_files_are_a_model_error(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m")
    checkpoint, _, _ = opened(settings_of(folder))
    checkpoint.tensors()
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = data[8:40].replace(b"{", b"[", 1)
    file.write_bytes(data)
    with pytest.raises(ModelError):
        CheckpointSource(checkpoint, torch.float32, CPU)


def test_random_weights_have_the_shapes_asked_for_and_are_the_same_each_time(folder: Path) -> None:
    _, family, _ = opened(settings_of(folder))
    shapes = family.config.weight_shapes()
    first, again = (RandomSource(shapes, torch.float32, CPU) for _ in range(2))
    for name, shape in shapes.items():
        assert first(name).shape == shape
        assert torch.equal(first(name), again(name))
    assert first("lm_head.weight").std() == pytest.approx(0.02, rel=0.1)
    assert (first("model.text_model.norm.weight") == 1).all()
