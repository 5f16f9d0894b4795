"""Questions by CUDA graphs of several sizes: to the bit what a full batch gives, whoever is in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from idefics_cli.config import Device, Dtype, ModelSettings, Quantize
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.models.decoder import KVCache, Segment
from idefics_cli.engine.native.ops.row_counts import equal_row_counts
from idefics_cli.engine.native.prefill import Piece
from idefics_cli.engine.native.prefill_forward import PrefillForward
from idefics_cli.engine.native.weights import CheckpointSource, Weights
from tests.small_checkpoints import opened

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
TOKENS, ROWS, SIZES = 1024, 16, (64, 128, 256, 512, 1024)


@pytest.mark.parametrize("quantize", [quantize for quantize in Quantize if quantize.is_native])
def test_a_graph_and_neighbours_change_no_bit(quantize: Quantize, tiny_settings: ModelSettings) -> None:
    settings = dataclasses.replace(tiny_settings, device=Device.CUDA, dtype=Dtype.BFLOAT16, quantize=quantize)
    checkpoint, family, _ = opened(settings)
    image = family.config.image_token_id
    with torch.inference_mode():
        weights = Weights(CheckpointSource(checkpoint, torch.bfloat16, CUDA), quantize, torch.bfloat16, CUDA)
        runner = ModelRunner(weights, family, settings)
        sizes = equal_row_counts(runner.decoder.products, SIZES, runner.ops)
        assert len(sizes) > 1  # smaller ones are of use
        cache = KVCache(family.config.text, 4000, runner.decoder.dtype, CUDA)

        def forward(*, recorded: bool) -> PrefillForward:
            some = sizes if recorded else sizes[-1:]
            made = PrefillForward(runner.decoder, cache, runner.ops, image, sizes=some, rows=ROWS)
            if recorded:
                made.record_when_used()
            return made

        prefix = Piece(Segment(100, suffix_start=1), tuple(range(100)), None, None, None)
        launched, recorded = forward(recorded=False), forward(recorded=True)
        launched.run([prefix], TOKENS)
        questions = [
            Piece(Segment(length, 200 * (index + 1), prefix_start=1, prefix_length=100), ids, None, None, index)
            for index, length in enumerate([5, 20, 1, 64, 33, 2])
            for ids in [tuple(range(50 + index, 50 + index + length))]
        ]
        expected = [launched.run([question], TOKENS)[0] for question in questions]

        def check(found: Tensor, numbers: list[int]) -> None:
            for row, number in zip(found, numbers, strict=True):
                assert torch.equal(row, expected[number])

        for _ in range(4):  # the first times launched, later ones replayed
            for numbers in ([0, 1, 2, 3, 4, 5], [3], [5, 1], [4, 3, 2, 1, 0]):
                check(recorded.run([questions[number] for number in numbers], TOKENS), numbers)
                check(launched.run([questions[number] for number in numbers], TOKENS), numbers)
        longer = Piece(Segment(80, 3000, prefix_start=1, prefix_length=100), tuple(range(80)), None, None, 6)
        alone = launched.run([longer], TOKENS)[0]
        assert torch.equal(recorded.run([longer, questions[1]], TOKENS)[0], alone)  # no graph holds it
