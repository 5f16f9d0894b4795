"""How much is done at once, from the memory that is free beside the weights. Policy only: no tensors here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from idefics_cli.config import Quantize
from idefics_cli.engine.families.base import ModelConfig
from idefics_cli.engine.quantization import GROUP

CPU_SEQUENCES = 8
GPU_SEQUENCES = 64
_QUESTION_TOKENS = 64  # a question of about 40 words
_HEADROOM = 0.9  # of free memory; the rest is the allocator's gaps and the libraries' workspaces
_CPU_PATCHES = 1 << 14
_GROUPED = (Quantize.INT8, Quantize.INT4)
_SPARE_PART = 4
KEPT_PAGES = 256
"""Whose keys and values stay where clients share the engine: some hundred of them, with a page each, find theirs."""
_FIXED = 1 << 29
_PRODUCT_BYTES = {
    # of one weight of a product, with its part of scales (float16) and zeros (a byte); fp8's are one for an output
    Quantize.FP8: 1.0,
    Quantize.INT8: 1 + 2 / GROUP,
    Quantize.INT4: 0.5 + 3 / GROUP,
}


@dataclass(frozen=True, slots=True)
class WorkSizes:
    """Bytes that a checkpoint's work takes on its device."""

    slot: int
    """Keys and values of one position, all layers."""
    page: int
    """Activations of one page, of as many crops of the largest size as there may be, in the vision encoder."""
    patch: int
    """Activations of one patch in the connector's projection."""
    token: int
    """Activations of one token of a prompt."""
    fixed: int = _FIXED
    """What does not grow with the work: logits, workspaces of libraries, the graph."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        item: int,
        quantize: Quantize = Quantize.NONE,
        *,
        wide_item: int | None = None,
        edge: int | None = None,
    ) -> WorkSizes:
        """Count what is alive at the peak of each stage.

        Products in int8 and int4 write their weight out in the dtype of the model where rows are many.

        Args:
            config: of the checkpoint.
            item: bytes of one number in the dtype of the model.
            quantize: the format of linear layers.
            wide_item: bytes of one number in the connector's projection; None is `item`.
            edge: longest edge of an image in pixels; None is the longest that the encoder takes.

        """
        vision, text, context = config.vision, config.text, config.context_width
        tower = max(7 * vision.hidden_size + vision.intermediate_size, vision.hidden_size + 2 * context)
        side = vision.positions if edge is None else edge // vision.patch_size
        return cls(
            slot=2 * text.num_layers * text.num_kv_heads * text.head_dim * item,
            page=config.max_crops * side**2 * item * tower,
            patch=config.projection_width * (wide_item or item),
            token=(3 * text.intermediate_size + 6 * text.hidden_size) * item,
            fixed=_FIXED + (2 * text.intermediate_size * text.hidden_size * item if quantize in _GROUPED else 0),
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much is done at once."""

    max_num_seqs: int
    """Sequences decoded together."""
    slots: int
    """Of the KV cache."""
    max_projected_patches: int
    """Patches whose widest activations exist together in the connector."""
    max_num_batched_tokens: int | None
    """Tokens of a prefill batch, to which it is padded; None computes each segment by itself."""
    max_encoded_pages: int = 1
    """Pages that go through the vision model side by side."""
    most_slots: int = 0
    """Slots that there would be memory for, where prompts are longer than planned; no more than `slots` if smaller."""

    def bytes(self, sizes: WorkSizes) -> int:
        """Return the memory at the peak, weights aside: the cache, encoding, whose graphs keep theirs, and prefill."""
        encoding = self.max_encoded_pages * (sizes.page + self.max_projected_patches * sizes.patch)
        prefill = (self.max_num_batched_tokens or 0) * sizes.token
        return sizes.fixed + self.slots * sizes.slot + encoding + prefill


MOST_LAYERS_AT_ONCE = 8
"""Threads: copying from the page cache keeps about as many cores busy as the bus to a GPU takes."""
_COPIES_OF_A_WEIGHT = 6  # two that share their input, the same joined, and what is computed on the way


def weight_bytes(config: ModelConfig, quantize: Quantize, item: int, *, wide_item: int | None = None) -> int:
    """Return how much memory the weights take; embeddings and the head are never quantized.

    Args:
        config: of the checkpoint.
        quantize: the format of linear layers.
        item: bytes of one number in the dtype of the model.
        wide_item: bytes of one number in the connector's projection; None is `item`.

    """
    total = 0.0
    for name, shape in config.weight_shapes().items():
        is_product = len(shape) == 2 and name.endswith(("_proj.weight", "fc1.weight", "fc2.weight"))
        width = -(-shape[-1] // GROUP) * GROUP if quantize in _GROUPED else shape[-1]
        own = (wide_item or item) if name.startswith("model.connector.modality_projection.") else item
        each = _PRODUCT_BYTES.get(quantize, own) if is_product else own
        total += math.prod(shape[:-1]) * (width if is_product else shape[-1]) * each
    return int(total)


def layers_at_once(config: ModelConfig, quantize: Quantize, item: int, spare: int | None) -> int:
    """Return how many layers are read at once: fewer where what is quantized hardly fits beside what it becomes.

    Args:
        config: of the checkpoint.
        quantize: the format of linear layers.
        item: bytes of one number in the dtype of the model.
        spare: bytes that the weights leave; None where memory is no matter.

    """
    if spare is None or quantize is Quantize.NONE:
        return MOST_LAYERS_AT_ONCE
    largest = config.text.intermediate_size * config.text.hidden_size * item
    return max(1, min(MOST_LAYERS_AT_ONCE, spare // (_COPIES_OF_A_WEIGHT * largest)))


def plan_memory(
    free: int | None,
    sizes: WorkSizes,
    *,
    batch_size: int | None,
    page_tokens: int,
    max_new_tokens: int,
    free_host: int | None = None,
    kept_pages: int = 0,
) -> MemoryPlan:
    """Choose how much is done at once.

    Args:
        free: bytes that may be used; None where memory is the host's.
        sizes: of the checkpoint's work.
        batch_size: sequences decoded together as the user wants them; None chooses.
        page_tokens: of a page in a prompt, at most.
        max_new_tokens: of an answer.
        free_host: bytes of the host's memory that bound the cache where it lies there; None where they are unknown.
        kept_pages: pages whose keys and values stay for later questions, in a quarter of the spare memory at most.

    """
    sequence = page_tokens + _QUESTION_TOKENS + max_new_tokens

    def plan(sequences: int, patches: int, tokens: int | None, pages: int = 1) -> MemoryPlan:
        wanted = batch_size or sequences
        return MemoryPlan(wanted, wanted * sequence + 1, patches, tokens, pages)

    if free is None:
        if batch_size and free_host is not None:  # the system would end the process, not refuse the memory
            batch_size = max(1, min(batch_size, free_host // 2 // (sequence * sizes.slot)))
        chosen = plan(CPU_SEQUENCES, _CPU_PATCHES, None)
        most = max(chosen.slots, (free_host or 0) // 2 // sizes.slot)
        return _with_kept(chosen, most, kept_pages * page_tokens)
    candidates = [
        plan(sequences, patches, PREFILL_TOKENS, pages)
        for sequences, patches, pages in (
            (GPU_SEQUENCES, 1 << 14, 2),
            (GPU_SEQUENCES, 1 << 13, 1),
            (GPU_SEQUENCES // 2, 1 << 12, 1),
            (GPU_SEQUENCES // 4, 1 << 12, 1),
            (GPU_SEQUENCES // 8, 1 << 11, 1),
            (GPU_SEQUENCES // 16, 1 << 11, 1),
            (1, 1 << 10, 1),
        )
    ]
    usable = free * _HEADROOM
    chosen = next((one for one in candidates if one.bytes(sizes) <= usable), candidates[-1])
    spare = max(0, int((usable - chosen.bytes(sizes)) // sizes.slot))
    return _with_kept(chosen, chosen.slots + spare, kept_pages * page_tokens)


def _with_kept(plan: MemoryPlan, most_slots: int, kept: int) -> MemoryPlan:
    """Add slots for what is kept, as far as they are spare."""
    spare = (most_slots - plan.slots) // _SPARE_PART
    return replace(plan, slots=plan.slots + min(kept, spare), most_slots=most_slots)


PREFILL_TOKENS = 1024
"""Tokens of a prefill batch on a GPU. It is always the same number, so that the products of a prompt, and with them its
answer, never depend on what else is in the batch."""
DECODE_SEQUENCES = {"cpu": CPU_SEQUENCES, "mps": CPU_SEQUENCES, "cuda": GPU_SEQUENCES}
"""Sequences of a decoding step, by device; what is lacking is filled up, for the same reason."""
