"""What of prompts has to be computed, packed into batches, and who bears the cost.

A prompt is a prefix, which sequences about the same pages share, and a suffix. A prefix that begins with examples has
them as its head, another prefix, which all sequences share: the head is computed once, in a batch before, and its keys
and values are copied to where the prefix lies. Attention so reads one range of slots for the prefix, as without a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.kv_cache import Prefix
from idefics_cli.engine.native.models.decoder import KVCache, Segment
from idefics_cli.engine.native.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one sequence in a prefill batch."""

    segment: Segment
    tokens: tuple[int, ...]
    features: Tensor | None
    """Of the image tokens among them, (image tokens, width)."""
    fills: Prefix | None
    """The prefix that is computed once this piece is."""
    starts: int | None
    """Index of the sequence whose prompt ends with this piece."""
    copies: Prefix | None = None
    """The head whose keys and values are copied before the piece is computed."""
    ends_batch: bool = False
    """Whether pieces behind it need what it computes."""


def pieces_of(admitted: Mapping[int, Sequence], features: EncoderCache, image_token_id: int) -> Iterator[Piece]:
    """Yield what has to be computed: each new prefix once, its head before it, then the suffix of each sequence."""
    pending: set[int] = set()
    for index, sequence in admitted.items():
        prefix, length = sequence.prefix, sequence.prompt.prefix_length
        assert prefix is not None
        if not prefix.is_filled and id(prefix) not in pending:
            pending.add(id(prefix))
            yield from _prefix_pieces(sequence, prefix, features, image_token_id, pending)
        segment = Segment(len(sequence.suffix), sequence.suffix_start, prefix_start=prefix.start, prefix_length=length)
        yield Piece(segment, sequence.suffix, None, None, index)


def _prefix_pieces(
    sequence: Sequence, prefix: Prefix, cache: EncoderCache, image_token_id: int, pending: set[int]
) -> Iterator[Piece]:
    """Yield a new prefix; its head too where that is new."""
    tokens = sequence.prompt.tokens[: sequence.prompt.prefix_length]
    head = prefix.head
    if head is None and not sequence.page_ids:  # a conversation of texts: its prefix is the first token
        yield Piece(Segment(len(tokens), prefix.start), tokens, None, prefix, None)
        return
    features = torch.cat([cache[page] for page in sequence.page_ids])
    if head is None:
        yield Piece(Segment(len(tokens), prefix.start), tokens, features, prefix, None)
        return
    images = tokens[: head.length].count(image_token_id)
    if not head.is_filled and id(head) not in pending:
        pending.add(id(head))
        shared = tokens[: head.length]
        yield Piece(Segment(head.length, head.start), shared, features[:images], head, None, ends_batch=True)
    segment = Segment(len(tokens) - head.length, prefix.start, suffix_done=head.length)
    yield Piece(segment, tokens[head.length :], features[images:], prefix, None, copies=head)


def batches_of(pieces: Iterator[Piece], limit: int | None, image_token_id: int) -> Iterator[list[Piece]]:
    """Pack pieces into batches of a fixed number of tokens, cut where a batch is full; or each by itself."""
    batch: list[Piece] = []
    room = limit or 0
    for piece in pieces:
        if limit is None:
            yield [piece]
            continue
        rest: Piece | None = piece
        while rest is not None:
            head, rest = _cut(rest, room, image_token_id)
            batch.append(head)
            room -= len(head.tokens)
            if room == 0 or head.ends_batch:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch


def _cut(piece: Piece, room: int, image_token_id: int) -> tuple[Piece, Piece | None]:
    """Cut a piece after so many tokens, if it is longer."""
    if len(piece.tokens) <= room:
        return piece, None
    segment, features = piece.segment, piece.features
    images = piece.tokens[:room].count(image_token_id)
    first = dataclasses.replace(segment, length=room)
    second = dataclasses.replace(segment, length=segment.length - room, suffix_done=segment.suffix_done + room)
    before, behind = (features[:images], features[images:]) if features is not None else (None, None)
    return (
        Piece(first, piece.tokens[:room], before, None, None, piece.copies),
        dataclasses.replace(piece, segment=second, tokens=piece.tokens[room:], features=behind, copies=None),
    )


def copy_heads(pieces: SequenceOf[Piece], cache: KVCache) -> None:
    """Copy the keys and values of heads to the prefixes that begin with them."""
    for piece in pieces:
        if (head := piece.copies) is not None:
            start = piece.segment.suffix_start
            for slots in (cache.keys, cache.values):
                slots[:, start : start + head.length] = slots[:, head.start : head.start + head.length]


def payers_of(
    piece: Piece, admitted: Mapping[int, Sequence], sharing: Mapping[object, SequenceOf[Sequence]]
) -> Iterator[tuple[Sequence, float]]:
    """Yield who bears the cost of a piece, and in which parts: a sequence its suffix, what it shares with others."""
    segment = piece.segment
    for sequence in admitted.values():
        prefix = sequence.prefix
        assert prefix is not None
        if segment.prefix_length:
            if segment.suffix_start == sequence.suffix_start:
                yield sequence, 1.0
                return
            continue
        for shared in filter(None, (prefix, prefix.head)):
            if segment.suffix_start == shared.start:
                sharers = sharing[shared.key]
                yield from ((sharer, 1 / len(sharers)) for sharer in sharers)
                return
