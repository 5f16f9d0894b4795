from __future__ import annotations

from pathlib import Path
from typing import Any

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
def last_states(
    folder: Path,
    batches: list[list[Piece]],
    limit: int | None,
    sizes: tuple[int, ...] = (),
    seen: list[int] | None = None,
) -> list[Tensor]:
    class Seen(Decoder):
        def forward(self, hidden: Tensor, *arguments: Any) -> Tensor:
            if seen is not None:
                seen.append(len(hidden))
            return super().forward(hidden, *arguments)

    weights, family = weights_of(settings_of(folder))
    text = family.config.text
    decoder = Seen(weights, text, tie_word_embeddings=False)
    cache = KVCache(text, 200, torch.float32, CPU)
    forward = PrefillForward(decoder, cache, torch_ops, IMAGE, sizes=sizes, rows=8)
    forward.record_when_used()  # only where kernels run
    return [state for pieces in batches for state in forward.run(pieces, limit)]


def test_pieces_together_and_padded_are_as_each_by_itself(folder: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 32)
    prefix = Piece(Segment(5, suffix_start=1), (1, IMAGE, IMAGE, 7, 9), image, None, None)
    questions = [
        Piece(Segment(length, start, prefix_start=1, prefix_length=5), tuple(range(10, 10 + length)), None, None, index)
        for index, (length, start) in enumerate([(3, 20), (1, 40), (6, 60)])
    ]
    alone = last_states(folder, [[prefix], *[[question] for question in questions]], limit=None)
    together = last_states(folder, [[prefix], questions], limit=16)
    assert len(together) == len(alone) == 4
    for found, expected in zip(together, alone, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    other = Piece(prefix.segment, prefix.tokens, -image, None, None)
    assert not torch.allclose(last_states(folder, [[other]], limit=None)[0], alone[0])  # the page matters


def test_a_head_is_copied_before_what_follows_it(folder: Path) -> None:
    from idefics_cli.engine.native.kv_cache import Prefix

    head = Piece(Segment(3, suffix_start=1), (1, 2, 3), None, None, None, ends_batch=True)
    whole = Piece(Segment(5, suffix_start=1), (1, 2, 3, 4, 5), None, None, None)
    rest = Piece(Segment(2, suffix_start=50, suffix_done=3), (4, 5), None, None, None, copies=Prefix("head", 1, 3))
    expected = last_states(folder, [[whole]], limit=8)[0]
    found = last_states(folder, [[head], [rest]], limit=8)[-1]
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_batch_is_filled_up_to_the_smallest_size_that_holds_it(folder: Path) -> None:
    batches = [
        [Piece(Segment(length, 20), tuple(range(10, 10 + length)), None, None, 0)] for length in (1, 8, 9, 20, 32)
    ]
    alone = last_states(folder, batches, limit=None)
    for limit, sizes, expected in (
        (32, (8, 16, 32), [8, 8, 16, 32, 32]),
        (32, (32,), [32] * 5),
        (64, (8, 16, 32, 64), [8, 8, 16, 32, 32]),
        (32, (8, 16, 64), [8, 8, 16, 32, 32]),  # the limit has been lowered for want of memory
        (None, (), [1, 8, 9, 20, 32]),
    ):
        seen: list[int] = []
        found = last_states(folder, batches, limit, sizes, seen)
        assert seen == expected
        for one, other in zip(found, alone, strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-5
