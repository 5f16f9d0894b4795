"""float16, whose largest number is 65504: what outgrows it in the connector is kept in a wider form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.native.models.vision import vision_encoder
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.errors import FailureKind
from tests.small_checkpoints import reference, save_checkpoint, settings_of, small_requests, weights_of

PROJECTION = "model.connector.modality_projection."
LARGEST = 65504.0


def save_large(folder: Path, factor: float = 300.0) -> ModelSettings:
    """A checkpoint whose projection makes numbers far beyond float16."""
    path = save_checkpoint(folder, generation={}) / "model.safetensors"
    weights = load_file(path)
    for name in ("gate_proj", "up_proj"):
        weights[f"{PROJECTION}{name}.weight"] *= factor
    save_file(weights, path, metadata={"format": "pt"})
    return settings_of(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return save_large(tmp_path_factory.mktemp("large") / "m")


def features(settings: ModelSettings) -> torch.Tensor:
    weights, family = weights_of(settings)
    encoder = vision_encoder(weights, family.config, family.normalization)
    crops = torch.from_numpy(small_requests()[0].pages[0].crops[0].copy())[None]
    return encoder.encode(crops, torch_ops, max_projected_patches=64)


def widest(settings: ModelSettings) -> float:
    """The largest number that enters the last product of the projection, in float32."""
    model = reference(settings)
    found: list[float] = []
    projection = model.model.model.connector.modality_projection
    projection.down_proj.register_forward_pre_hook(lambda _, given: found.append(float(given[0].abs().max())))
    model.generate(small_requests()[:1])
    return max(found)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("quantize", [Quantize.NONE, Quantize.FP8, Quantize.INT8, Quantize.INT4])
def test_image_features_are_those_of_float32(quantize: Quantize, large: ModelSettings) -> None:
    assert widest(large) > 10 * LARGEST
    settings = dataclasses.replace(large, quantize=quantize)
    wanted = features(settings)
    found = features(dataclasses.replace(settings, dtype=Dtype.FLOAT16))
    assert found.dtype is torch.float16
    assert relative_error(found, wanted) < (5e-3 if quantize is Quantize.NONE else 0.1)


def test_answers_and_confidence_are_those_of_float32_natively_and_by_transformers(large: ModelSettings) -> None:
    def answers(settings: ModelSettings) -> list[tuple[str, float]]:
        engine = open_engine(settings)
        found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
        engine.close()
        assert not [answer.failure for answer in found if answer.failure]
        return [(answer.text[:4], answer.confidence) for answer in found]

    settings = dataclasses.replace(large, max_new_tokens=4)
    for beams in (None, 2):
        exact = answers(dataclasses.replace(settings, num_beams=beams))
        half = answers(dataclasses.replace(settings, num_beams=beams, dtype=Dtype.FLOAT16))
        assert [text for text, _ in half] == [text for text, _ in exact]
        assert [one for _, one in half] == pytest.approx([one for _, one in exact], rel=0.1)


def test_what_overflows_elsewhere_is_a_failed_row_that_names_the_way_out(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m", generation={}) / "model.safetensors"
    weights = load_file(path)
    for part in ("gate_proj", "up_proj"):
        weights[f"model.text_model.layers.0.mlp.{part}.weight"] *= 1000.0
    save_file(weights, path, metadata={"format": "pt"})
    for beams in (None, 2):
        engine = open_engine(settings_of(tmp_path / "m", dtype=Dtype.FLOAT16, num_beams=beams))
        answer = engine.submit(small_requests()[0]).result()
        engine.close()
        assert answer.failure is not None
        assert answer.failure.kind is FailureKind.MODEL_ERROR
        assert "try --dtype bfloat16 or float32" in answer.failure.detail
