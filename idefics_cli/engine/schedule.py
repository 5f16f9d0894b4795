"""What goes together, and where it is kept. Policy alone: no tensors here."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CPU_ROWS = 8
GPU_ROWS = 64
_GRAPH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_QUESTION_TOKENS = 64  # a question of about 40 words
_HEADROOM = 0.9  # of free memory; the rest is the allocator's gaps and the libraries' workspaces


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that a checkpoint's work takes on its device."""

    slot: int
    """Keys and values of one position, all layers."""
    crop: int
    """Activations of one crop of the largest size in the vision tower."""
    patch: int
    """Activations of one patch in the connector's projection."""
    token: int
    """Activations of one token of a prompt."""
    fixed: int
    """What does not grow with the work: logits, workspaces of libraries, graphs."""


def head_dim(text: Any) -> int:
    """Return the size of an attention head, which a text model's configuration may leave to its width."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def sizes(config: Any, item: int) -> Sizes:
    """Count what is alive at the peak of each stage.

    Args:
        config: of the checkpoint.
        item: bytes of one number.

    """
    vision, text, perceiver = config.vision_config, config.text_config, config.perceiver_config
    patches = (vision.image_size // vision.patch_size) ** 2
    context = 2 * perceiver.resampler_depth * perceiver.num_key_value_heads * perceiver.resampler_head_dim
    return Sizes(
        slot=2 * text.num_hidden_layers * text.num_key_value_heads * head_dim(text) * item,
        crop=patches * item * max(7 * vision.hidden_size + vision.intermediate_size, vision.hidden_size + 2 * context),
        patch=(3 * text.intermediate_size + 2 * text.hidden_size) * item,
        token=(3 * text.intermediate_size + 6 * text.hidden_size) * item,
        fixed=1 << 29,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done at once."""

    rows: int
    """Questions decoded together."""
    slots: int
    """Positions of the cache."""
    crops: int
    """Through the vision tower."""
    patches: int
    """Through the connector's projection."""
    tokens: int
    """Of prompts."""

    def bytes(self, sizes: Sizes) -> int:
        """Memory at the peak, weights aside: the cache, and the stage that takes most."""
        stages = (self.crops * sizes.crop + self.patches * sizes.patch, self.tokens * sizes.token)
        return sizes.fixed + self.slots * sizes.slot + max(stages)


def plan(free: int | None, work: Sizes, *, rows: int, crop_tokens: int, max_new_tokens: int) -> Plan:
    """Choose how much is done at once.

    Args:
        free: bytes that may be used; None where memory is the host's.
        work: the checkpoint's.
        rows: as the user wants them; 0 chooses, and fewer are taken only then.
        crop_tokens: of one crop in a prompt.
        max_new_tokens: of an answer.

    """
    a_row = 5 * (crop_tokens + 2) + _QUESTION_TOKENS + max_new_tokens
    if free is None:
        wanted = rows or CPU_ROWS
        return Plan(wanted, slots=wanted * a_row + 1, crops=5, patches=1 << 14, tokens=2048)
    chosen = Plan(rows or 1, (rows or 1) * a_row + 1, crops=1, patches=1 << 10, tokens=512)
    for wanted, crops, patches, tokens in (
        (GPU_ROWS, 20, 1 << 14, 1 << 13),
        (GPU_ROWS, 20, 1 << 13, 1 << 12),
        (GPU_ROWS, 10, 1 << 12, 1 << 12),
        (GPU_ROWS // 2, 10, 1 << 12, 1 << 11),
        (GPU_ROWS // 4, 5, 1 << 12, 1 << 11),
        (GPU_ROWS // 8, 5, 1 << 11, 1 << 10),
        (GPU_ROWS // 16, 2, 1 << 11, 1 << 10),
    ):
        candidate = Plan(rows or wanted, (rows or wanted) * a_row + 1, crops, patches, tokens)
        if candidate.bytes(work) <= free * _HEADROOM:
            chosen = candidate
            break
    return chosen


def graph_rows(rows: int) -> int:
    """Return the row count of the graph that decodes so many rows; there are few, so that few are recorded."""
    index = bisect.bisect_left(_GRAPH_ROWS, rows)
    return _GRAPH_ROWS[index] if index < len(_GRAPH_ROWS) else rows


def is_time_to_admit(waiting: int, decoding: int, rows: int) -> bool:
    """Whether waiting rows join those being decoded: when they fill a quarter of the rows, or nothing else is left.

    Prompts are cheap together and dear alone, since each time all the weights are read.
    """
    free = rows - decoding
    return waiting > 0 and free > 0 and (decoding == 0 or free >= min(waiting, max(1, rows // 4)))


def chunks(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Divide a sequence, in order, so that the lengths of a part sum to at most `at_once` (or it is one alone)."""
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > at_once:
            yield slice(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))
