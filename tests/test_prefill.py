"""What of prompts is computed together: prefixes once, suffixes in batches of their own."""

from __future__ import annotations

from idefics_cli.engine.families.base import Prompt
from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.kv_cache import KVCacheManager
from idefics_cli.engine.native.prefill import PieceBatch, batches_of, payers_of, pieces_of
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


def batches(sequences: dict[int, Sequence], prefix_tokens: int | None, suffix_tokens: int | None) -> list[PieceBatch]:
    pieces = pieces_of(sequences, EncoderCache(), IMAGE)
    return list(batches_of(pieces, prefix_tokens, suffix_tokens, IMAGE))


def shape(made: list[PieceBatch]) -> list[tuple[int, list[tuple[int, ...]]]]:
    return [(batch.padded_to, [piece.tokens for piece in batch.pieces]) for batch in made]


def test_prefixes_come_first_and_what_is_full_is_cut() -> None:
    sequences = admitted((0, 5, 2), (100, 6, 3), (200, 1, 4))
    assert shape(batches(sequences, 8, 4)) == [
        (8, [(0, 1, 2, 3, 4), (100, 101, 102)]),
        (8, [(103, 104, 105), (200,)]),
        (4, [(5, 6), (106, 107)]),
        (4, [(108,), (201, 202, 203)]),
        (4, [(204,)]),
    ]


def test_a_token_is_in_a_batch_of_the_same_size_whoever_is_with_it() -> None:
    for others in ([], [(300, 40, 9)], [(300, 3, 9), (400, 2, 1)]):
        made = batches(admitted(*others, (0, 5, 2)), 16, 4)
        for batch in made:
            for piece in batch.pieces:
                assert batch.padded_to == (16 if piece.starts is None and not piece.segment.prefix_length else 4)


def test_parts_of_a_cut_piece_follow_each_other_in_the_cache() -> None:
    sequences = admitted((0, 5, 7))
    parts = [piece for batch in batches(sequences, 4, 3) for piece in batch.pieces]
    done = [(piece.segment.length, piece.segment.suffix_done) for piece in parts]
    assert done == [(4, 0), (1, 4), (3, 0), (3, 3), (1, 6)]
    assert [piece.starts for piece in parts] == [None, None, None, None, 0]  # only its end has the last state
    assert [piece.fills is not None for piece in parts] == [False, True, False, False, False]


def test_without_sizes_each_piece_is_by_itself_a_shared_prefix_once() -> None:
    sequences = admitted((0, 5, 2), (0, 5, 2))
    made = batches(sequences, None, None)
    assert shape(made) == [(0, [(0, 1, 2, 3, 4)]), (0, [(5, 6)]), (0, [(5, 6)])]


def test_a_prefix_is_paid_for_by_all_that_share_it() -> None:
    sequences = admitted((0, 5, 2), (0, 5, 2))
    prefix, first, _ = [batch.pieces[0] for batch in batches(sequences, None, None)]
    sharing = {sequences[0].prefix_key: [*sequences.values()]}
    assert list(payers_of(prefix, sequences, sharing)) == [(sequences[0], 0.5), (sequences[1], 0.5)]
    assert list(payers_of(first, sequences, sharing)) == [(sequences[0], 1.0)]
