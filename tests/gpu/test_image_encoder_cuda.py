"""Pages through the vision model on a GPU: graphs and side by side, to the bit what a lone page launched by itself gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings, Quantize
from idefics_cli.engine.native.image_encoder import ImageEncoder
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from tests.small_checkpoints import noise_page, opened

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("quantize", [quantize for quantize in Quantize if quantize.is_native])
def test_graphs_and_neighbours_change_no_bit(quantize: Quantize, tiny_settings: ModelSettings) -> None:
    settings = dataclasses.replace(tiny_settings, device=Device.CUDA, dtype=Dtype.BFLOAT16, quantize=quantize)
    checkpoint, family, _ = opened(settings)
    with torch.inference_mode():
        weights = Weights(CheckpointSource(checkpoint, torch.bfloat16, CUDA), quantize, torch.bfloat16, CUDA)
        runner = ModelRunner(weights, family, settings)
    pages = [
        noise_page(seed, *shapes).crops
        for seed, shapes in enumerate([[(35, 25)] * 5, [(35, 27)], [(35, 25)] * 5, [(20, 35), (35, 20)], [(35, 27)]])
    ]

    def encoder(lanes: int) -> ImageEncoder:
        return ImageEncoder(runner.vision, runner.ops, CUDA, max_projected_patches=1 << 14, lanes=lanes)

    launched = encoder(1)
    launched.release_memory()  # no graphs from now on
    expected = [launched.encode([page])[0].clone() for page in pages]
    for lanes in (1, 2, 3):
        one = encoder(lanes)
        for _ in range(4):  # the first times launched, later ones replayed
            for start in range(0, len(pages), lanes):
                some = slice(start, start + lanes)
                for found, wanted in zip(one.encode(pages[some]), expected[some], strict=True):
                    assert torch.equal(found, wanted)
