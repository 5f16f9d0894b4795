"""Runs the models on their device: crops to image features, prompts to the KV cache, steps of decoding.

It does what it is told, and raises torch.OutOfMemoryError where memory does not suffice; `core` decides what then.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.config import Kernels, ModelSettings
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.native.choices import step_decoder
from idefics_cli.engine.native.decode import Start, StepDecoder
from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.image_encoder import ImageEncoder
from idefics_cli.engine.native.kv_cache import Prefix
from idefics_cli.engine.native.memory_plan import DECODE_SEQUENCES, MemoryPlan
from idefics_cli.engine.native.models.decoder import Decoder, KVCache, PackedSegments, Segment, to_device
from idefics_cli.engine.native.models.idefics2 import VisionEncoder
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops, has_triton
from idefics_cli.engine.native.sequence import CostShare, Output, Sequence
from idefics_cli.engine.native.timer import Timer
from idefics_cli.engine.native.weights import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive tokens of one sequence in a prefill batch."""

    segment: Segment
    tokens: tuple[int, ...]
    features: Tensor | None
    """Of the image tokens among them, (image tokens, width)."""
    fills: Prefix | None
    """The prefix that is computed once this piece is."""
    starts: int | None
    """Index of the sequence whose prompt ends with this piece."""


class ModelRunner:
    """The models, the KV cache and the state of decoding."""

    def __init__(self, weights: Weights, family: Idefics2Family, settings: ModelSettings) -> None:
        """Build the models from weights; the cache comes with `allocate`."""
        self._family, self._settings, self.device = family, settings, weights.device
        self.vision = VisionEncoder(weights, family.config, family.normalization)
        self.decoder = Decoder(weights, family.config.text, tie_word_embeddings=family.config.tie_word_embeddings)
        self.ops = choose_ops(settings.kernels, weights.device, family.config.text.head_dim)
        self.features = EncoderCache()
        rules = family.generation(settings)
        # No answer is longer than what the model takes: its questions fail one by one.
        longest = min(rules.max_new_tokens, family.config.text.max_positions)
        eos = frozenset() if settings.ignore_eos else rules.eos_token_ids
        self.rules = dataclasses.replace(rules, max_new_tokens=longest, eos_token_ids=eos)
        """How answers are generated."""

    def allocate(self, plan: MemoryPlan, slots: int) -> None:
        """Allocate a KV cache of so many slots, slot 0 for tokens of no sequence, and the state of decoding."""
        self.plan = plan
        self.cache: KVCache | None = None  # the old ones go before the new ones come
        self._decoding: StepDecoder | None = None
        self._encoder: ImageEncoder | None = None
        self.cache = KVCache(self._family.config.text, slots, self.decoder.dtype, self.device)
        prompts = self._family.prompt_builder(self._settings.prompt)
        rows = DECODE_SEQUENCES[self.device.type]
        sizes = {"max_num_seqs": plan.max_num_seqs, "rows": rows}
        self._decoding = step_decoder(self.decoder, self.cache, self.ops, self.rules, prompts, **sizes)
        self._encoder = ImageEncoder(
            self.vision,
            self.ops,
            self.device,
            max_projected_patches=plan.max_projected_patches,
            lanes=plan.max_encoded_pages,
        )

    @property
    def encoder(self) -> ImageEncoder:
        """Makes image features of pages."""
        assert self._encoder is not None
        return self._encoder

    @property
    def decoding(self) -> StepDecoder:
        """The state of decoding."""
        assert self._decoding is not None
        return self._decoding

    def record_graph(self) -> None:
        """Record a decoding step, where kernels run; without room for it, steps are launched kernel by kernel."""
        if self.ops is torch_ops:
            return
        try:
            self.decoding.record()
            return
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: recover outside of the handler
        torch.cuda.empty_cache()
        _log.warning("no memory for a CUDA graph: decoding is launched kernel by kernel")

    def release_memory(self) -> None:
        """Give back what no sequence needs, after memory ran out."""
        self.features.clear_unused()
        if self._encoder is not None:
            self._encoder.release_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def prefill(self, admitted: Mapping[int, Sequence], sharing: Mapping[object, SequenceOf[Sequence]]) -> None:
        """Compute the prompts of sequences, prefixes that are new first, and start to decode them.

        Args:
            admitted: by index.
            sharing: sequences, by prefix key, among which the cost of a new prefix is divided.

        """
        starting: list[tuple[Start, Tensor]] = []
        for pieces in self._batches(self._pieces(admitted)):
            timer = Timer(self.device)
            hidden = self._forward(pieces)
            timer.stop()
            total = sum(len(piece.tokens) for piece in pieces)
            for piece, last in zip(pieces, hidden, strict=True):
                share = len(piece.tokens) / total
                if piece.fills is not None:
                    piece.fills.is_filled = True
                if piece.starts is not None:
                    started = admitted[piece.starts]
                    start = Start(piece.starts, piece.segment, started.prompt.tokens, started.random_key)
                    starting.append((start, last))
                for sequence, part in self._payers(piece, admitted, sharing):
                    sequence.prefill.append((timer, share * part))
        timer = Timer(self.device)
        self.decoding.start([start for start, _ in starting], torch.stack([last for _, last in starting]))
        timer.stop()
        for start, _ in starting:
            admitted[start.index].prefill.append((timer, 1 / len(starting)))

    def decode(self, running: Mapping[int, Sequence]) -> None:
        """Add a token to every sequence."""
        timer = Timer(self.device)
        self.decoding.step(list(running))
        timer.stop()
        share: CostShare = (timer, 1 / len(running))
        for sequence in running.values():
            sequence.decode.append(share)
            sequence.batch_size = max(sequence.batch_size, len(running))

    def finished(self, running: Mapping[int, Sequence]) -> dict[int, Output]:
        """Return the outputs of sequences that are done; waits for the device."""
        return self.decoding.finished(list(running)) if running else {}

    def _forward(self, pieces: SequenceOf[_Piece]) -> Tensor:
        """Run the tokens of pieces through the decoder; returns the last hidden state of each, (pieces, width)."""
        packed = PackedSegments(
            [piece.segment for piece in pieces], self.device, padded_to=self.plan.max_num_batched_tokens or 0
        )
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens])
        padding = len(packed.positions) - len(tokens)
        hidden = self.decoder.embed(to_device(torch.cat([tokens, tokens.new_zeros(padding)]), self.device))
        features = [piece.features for piece in pieces if piece.features is not None]
        if features:
            images = to_device((tokens == self._family.config.image_token_id).nonzero()[:, 0], self.device)
            hidden[images] = torch.cat(features).to(hidden.dtype)
        assert self.cache is not None
        states = self.decoder.forward(hidden, packed.positions, packed.slots, packed.metadata, self.cache, self.ops)
        return states[packed.last]

    def _pieces(self, admitted: Mapping[int, Sequence]) -> Iterator[_Piece]:
        """Yield what has to be computed: each new prefix once, then the suffix of each sequence."""
        pending: set[int] = set()
        for index, sequence in admitted.items():
            prefix, length = sequence.prefix, sequence.prompt.prefix_length
            assert prefix is not None
            if not prefix.is_filled and id(prefix) not in pending:
                pending.add(id(prefix))
                features = torch.cat([self.features[page] for page in sequence.page_ids])
                yield _Piece(Segment(length, prefix.start), sequence.prompt.tokens[:length], features, prefix, None)
            segment = Segment(
                len(sequence.suffix), sequence.suffix_start, prefix_start=prefix.start, prefix_length=length
            )
            yield _Piece(segment, sequence.suffix, None, None, index)

    def _batches(self, pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
        """Pack pieces into batches of a fixed number of tokens, cut where a batch is full; or each by itself."""
        limit = self.plan.max_num_batched_tokens
        batch: list[_Piece] = []
        room = limit or 0
        for piece in pieces:
            if limit is None:
                yield [piece]
                continue
            rest: _Piece | None = piece
            while rest is not None:
                head, rest = self._cut(rest, room)
                batch.append(head)
                room -= len(head.tokens)
                if room == 0:
                    yield batch
                    batch, room = [], limit
        if batch:
            yield batch

    def _cut(self, piece: _Piece, room: int) -> tuple[_Piece, _Piece | None]:
        """Cut a piece after so many tokens, if it is longer."""
        if len(piece.tokens) <= room:
            return piece, None
        segment, tokens, features = piece.segment, piece.tokens, piece.features
        images = sum(token == self._family.config.image_token_id for token in tokens[:room])
        first = Segment(room, segment.suffix_start, segment.suffix_done, segment.prefix_start, segment.prefix_length)
        second = Segment(
            segment.length - room,
            segment.suffix_start,
            segment.suffix_done + room,
            segment.prefix_start,
            segment.prefix_length,
        )
        head = _Piece(first, tokens[:room], features[:images] if features is not None else None, None, None)
        return head, _Piece(
            second, tokens[room:], features[images:] if features is not None else None, piece.fills, piece.starts
        )

    def _payers(
        self, piece: _Piece, admitted: Mapping[int, Sequence], sharing: Mapping[object, SequenceOf[Sequence]]
    ) -> Iterator[tuple[Sequence, float]]:
        """Yield who bears the cost of a piece, and in which parts: a sequence its suffix, its prefix with others."""
        segment = piece.segment
        for sequence in admitted.values():
            assert sequence.prefix is not None
            if segment.prefix_length and segment.suffix_start == sequence.suffix_start:
                yield sequence, 1.0
                return
            if not segment.prefix_length and segment.suffix_start == sequence.prefix.start:
                sharers = sharing[sequence.prefix_key]
                yield from ((sharer, 1 / len(sharers)) for sharer in sharers)
                return


def choose_ops(kernels: Kernels, device: torch.device, head_dim: int) -> Ops:
    """Choose the implementation of the operations: this is the only place where it is chosen."""
    if kernels is Kernels.OFF or not has_triton(device, head_dim):
        return torch_ops
    from idefics_cli.engine.native.ops import triton_ops

    return triton_ops
