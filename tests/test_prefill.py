"""What of prompts is computed together: prefixes once, and who pays."""

from __future__ import annotations

from idefics_cli.engine.families.base import Prompt
from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.kv_cache import KVCacheManager
from idefics_cli.engine.native.prefill import Piece, batches_of, payers_of, pieces_of
from idefics_cli.engine.native.scheduler import Scheduler
from idefics_cli.engine.native.sequence import Sequence

IMAGE = 999


def admitted(*prompts: tuple[int, int, int]) -> dict[int, Sequence]:
    """Sequences of texts in a batch, by index: the first token of a prompt, those of its prefix, those behind it."""
    scheduler = Scheduler(len(prompts), 1)
    for first, prefix, suffix in prompts:
        scheduler.add(Sequence(Prompt(tuple(range(first, first + prefix + suffix)), prefix), {}, ()), [])
    scheduler.admit(KVCacheManager(1, 10_000))
    return scheduler.running


def batches(sequences: dict[int, Sequence], tokens: int | None) -> list[list[Piece]]:
    return list(batches_of(pieces_of(sequences, EncoderCache(), IMAGE), tokens, IMAGE))


def shape(made: list[list[Piece]]) -> list[list[tuple[int, ...]]]:
    return [[piece.tokens for piece in batch] for batch in made]


def test_each_prefix_comes_before_its_suffix_and_what_is_full_is_cut() -> None:
    sequences = admitted((0, 5, 2), (100, 6, 3), (200, 1, 4))
    assert shape(batches(sequences, 8)) == [
        [(0, 1, 2, 3, 4), (5, 6), (100,)],
        [(101, 102, 103, 104, 105), (106, 107, 108)],
        [(200,), (201, 202, 203, 204)],
    ]


def test_parts_of_a_cut_piece_follow_each_other_in_the_cache() -> None:
    sequences = admitted((0, 5, 7))
    parts = [piece for batch in batches(sequences, 4) for piece in batch]
    done = [(piece.segment.length, piece.segment.suffix_done) for piece in parts]
    assert done == [(4, 0), (1, 4), (3, 0), (4, 3)]
    assert [piece.starts for piece in parts] == [None, None, None, 0]  # only its end has the last state
    assert [piece.fills is not None for piece in parts] == [False, True, False, False]


def test_without_sizes_each_piece_is_by_itself_a_shared_prefix_once() -> None:
    sequences = admitted((0, 5, 2), (0, 5, 2))
    made = batches(sequences, None)
    assert shape(made) == [[(0, 1, 2, 3, 4)], [(5, 6)], [(5, 6)]]


def test_a_prefix_is_paid_for_by_all_that_share_it() -> None:
    sequences = admitted((0, 5, 2), (0, 5, 2))
    prefix, first, _ = [batch[0] for batch in batches(sequences, None)]
    sharing = {sequences[0].prefix_key: [*sequences.values()]}
    assert list(payers_of(prefix, sequences, sharing)) == [(sequences[0], 0.5), (sequences[1], 0.5)]
    assert list(payers_of(first, sequences, sharing)) == [(sequences[0], 1.0)]
