from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from idefics_cli.engine.native.models.decoder import Decoder, KVCache, Segment
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.prefill import Piece
from idefics_cli.engine.native.prefill_forward import PrefillForward
from tests.small_checkpoints import CPU, save_checkpoint, settings_of, weights_of

IMAGE = 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"))


@torch.inference_mode()
def last_states(folder: Path, batches: list[list[Piece]], padded_to: int) -> list[Tensor]:
    weights, family = weights_of(settings_of(folder))
    text = family.config.text
    decoder = Decoder(weights, text, tie_word_embeddings=False)
    cache = KVCache(text, 200, torch.float32, CPU)
    forward = PrefillForward(decoder, cache, torch_ops, IMAGE, recorded_tokens=padded_to, rows=8)
    forward.record_when_used()  # only where kernels run
    return [state for pieces in batches for state in forward.run(pieces, padded_to=padded_to)]


def test_pieces_together_and_padded_are_as_each_by_itself(folder: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 32)
    prefix = Piece(Segment(5, suffix_start=1), (1, IMAGE, IMAGE, 7, 9), image, None, None)
    questions = [
        Piece(Segment(length, start, prefix_start=1, prefix_length=5), tuple(range(10, 10 + length)), None, None, index)
        for index, (length, start) in enumerate([(3, 20), (1, 40), (6, 60)])
    ]
    alone = last_states(folder, [[prefix], *[[question] for question in questions]], padded_to=0)
    together = last_states(folder, [[prefix], questions], padded_to=16)
    assert len(together) == len(alone) == 4
    for found, expected in zip(together, alone, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    other = Piece(prefix.segment, prefix.tokens, -image, None, None)
    assert not torch.allclose(last_states(folder, [[other]], padded_to=0)[0], alone[0])  # the page matters


def test_a_head_is_copied_before_what_follows_it(folder: Path) -> None:
    from idefics_cli.engine.native.kv_cache import Prefix

    head = Piece(Segment(3, suffix_start=1), (1, 2, 3), None, None, None, ends_batch=True)
    whole = Piece(Segment(5, suffix_start=1), (1, 2, 3, 4, 5), None, None, None)
    rest = Piece(Segment(2, suffix_start=50, suffix_done=3), (4, 5), None, None, None, copies=Prefix("head", 1, 3))
    expected = last_states(folder, [[whole]], padded_to=8)[0]
    found = last_states(folder, [[head], [rest]], padded_to=8)[-1]
    assert float((found - expected).norm() / expected.norm()) < 1e-5
