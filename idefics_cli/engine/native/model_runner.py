"""Runs the models on their device: crops to image features, prompts to the KV cache, steps of decoding.

It does what it is told, and raises torch.OutOfMemoryError where memory does not suffice; `core` decides what then.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.config import Kernels, ModelSettings
from idefics_cli.engine.families.base import NativeFamily
from idefics_cli.engine.native.choices import step_decoder
from idefics_cli.engine.native.decode import LaunchedStep, Start, StepDecoder
from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.image_encoder import ImageEncoder
from idefics_cli.engine.native.memory_plan import DECODE_SEQUENCES, MemoryPlan
from idefics_cli.engine.native.models.decoder import Decoder, KVCache
from idefics_cli.engine.native.models.vision import vision_encoder
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import Ops, has_triton
from idefics_cli.engine.native.ops.row_counts import equal_row_counts
from idefics_cli.engine.native.prefill import batches_of, payers_of, pieces_of
from idefics_cli.engine.native.prefill_forward import PrefillForward
from idefics_cli.engine.native.sequence import Output, Sequence
from idefics_cli.engine.native.timer import Timer
from idefics_cli.engine.native.weights import Weights

_SIZES = (2, 3, 4, 5, 6, 7, 8)  # eighths of a prefill batch; multiples of 128 rows are what kernels are made for
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that the device has been handed, or a prefill, whose end is the first step of its sequences."""

    step: LaunchedStep
    sequences: dict[int, Sequence]
    """By index."""
    decoding: Timer | None = None
    """Of a step of decoding."""


class ModelRunner:
    """The models, the KV cache and the state of decoding."""

    def __init__(self, weights: Weights, family: NativeFamily, settings: ModelSettings) -> None:
        """Build the models from weights; the cache comes with `allocate`."""
        self._family, self._settings, self.device = family, settings, weights.device
        self.vision = vision_encoder(weights, family.config, family.normalization)
        self.decoder = Decoder(weights, family.config.text, tie_word_embeddings=family.config.tie_word_embeddings)
        self.ops = choose_ops(settings.kernels, weights.device, family.config.text.head_dim)
        self.features = EncoderCache()
        rules = family.generation(settings)
        # No answer is longer than what the model takes: its questions fail one by one.
        longest = min(rules.max_new_tokens, family.config.text.max_positions)
        eos = frozenset() if settings.ignore_eos else rules.eos_token_ids
        self.rules = dataclasses.replace(rules, max_new_tokens=longest, eos_token_ids=eos)
        """How answers are generated."""
        self._equal_sizes: dict[int, tuple[int, ...]] = {}

    def allocate(self, plan: MemoryPlan, slots: int) -> None:
        """Allocate a KV cache of so many slots, slot 0 for tokens of no sequence, and the state of decoding."""
        self.plan = plan
        self.cache: KVCache | None = None  # the old ones go before the new ones come
        self._decoding: StepDecoder | None = None
        self._prefilling: PrefillForward | None = None
        self._encoder: ImageEncoder | None = None
        self.cache = KVCache(self._family.config.text, slots, self.decoder.dtype, self.device)
        prompts = self._family.prompt_builder(self._settings.prompt)
        rows = DECODE_SEQUENCES[self.device.type]
        sizes = {"max_num_seqs": plan.max_num_seqs, "rows": rows}
        self._decoding = step_decoder(self.decoder, self.cache, self.ops, self.rules, prompts, **sizes)
        self._prefilling = PrefillForward(
            self.decoder,
            self.cache,
            self.ops,
            self._family.config.image_token_id,
            sizes=self._prefill_sizes(plan.max_num_batched_tokens),
            rows=plan.max_num_seqs,
        )
        self._encoder = ImageEncoder(
            self.vision,
            self.ops,
            self.device,
            max_projected_patches=plan.max_projected_patches,
            lanes=plan.max_encoded_pages,
        )

    def _prefill_sizes(self, limit: int | None) -> tuple[int, ...]:
        """Return the numbers of tokens that batches of a prefill are filled up to; none where they are not."""
        if limit is None:
            return ()
        if limit not in self._equal_sizes:
            counts = [limit * eighths // 8 for eighths in _SIZES]
            self._equal_sizes[limit] = equal_row_counts(self.decoder.products, counts, self.ops)
        return self._equal_sizes[limit]

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
        """Record a decoding step, where kernels run, and prefills of questions once they come.

        Without room for it, steps are launched kernel by kernel.
        """
        if self.ops is torch_ops:
            return
        assert self._prefilling is not None
        self._prefilling.record_when_used()
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
        if self._prefilling is not None:
            self._prefilling.release_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def prefill(self, admitted: Mapping[int, Sequence], sharing: Mapping[object, SequenceOf[Sequence]]) -> Launched:
        """Compute the prompts of sequences, prefixes that are new first, and choose their first tokens.

        Args:
            admitted: by index.
            sharing: sequences, by the key of a prefix or its head, among which the cost of a new one is divided.

        """
        starting: list[tuple[Start, Tensor]] = []
        assert self._prefilling is not None
        image, limit = self._family.config.image_token_id, self.plan.max_num_batched_tokens
        for pieces in batches_of(pieces_of(admitted, self.features, image), limit, image):
            timer = Timer(self.device)
            hidden = self._prefilling.run(pieces, limit)
            timer.stop()
            total = sum(len(piece.tokens) for piece in pieces)
            for piece, last in zip(pieces, hidden, strict=True):
                share = len(piece.tokens) / total
                if piece.fills is not None:
                    piece.fills.is_filled = True
                if piece.starts is not None:
                    started = admitted[piece.starts]
                    prompt, rules = started.prompt.tokens, started.rules or self.rules
                    start = Start(piece.starts, piece.segment, prompt, started.random_key, rules)
                    starting.append((start, last))
                for sequence, part in payers_of(piece, admitted, sharing):
                    sequence.prefill.append((timer, share * part))
        timer = Timer(self.device)
        step = self.decoding.start([start for start, _ in starting], torch.stack([last for _, last in starting]))
        timer.stop()
        for start, _ in starting:
            admitted[start.index].prefill.append((timer, 1 / len(starting)))
        return Launched(step, dict(admitted))

    def decode(self, running: Mapping[int, Sequence]) -> Launched | None:
        """Add a token to every sequence that goes on; None where no one does."""
        stepped = {index: sequence for index, sequence in running.items() if self.decoding.goes_on(index)}
        if not stepped:
            return None
        timer = Timer(self.device)
        step = self.decoding.step(list(stepped))
        timer.stop()
        return Launched(step, stepped, timer)

    def read(self, launched: Launched) -> dict[int, Output]:
        """See `StepDecoder.read`: an output is of the step's own sequence at that index."""
        return self.decoding.read(launched.step)

    def tokens_so_far(self, index: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the tokens so far of a running sequence, and their log-probabilities."""
        return self.decoding.tokens_so_far(index)


def choose_ops(kernels: Kernels, device: torch.device, head_dim: int) -> Ops:
    """Choose the implementation of the operations: this is the only place where it is chosen."""
    if kernels is Kernels.OFF or not has_triton(device, head_dim):
        return torch_ops
    from idefics_cli.engine.native.ops import triton_ops

    return triton_ops
