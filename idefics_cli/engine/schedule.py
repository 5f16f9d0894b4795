"""Which questions are decoded together. Policy alone: no tensors here."""

from __future__ import annotations

from collections.abc import Sequence

CPU_BATCH = 8
LARGEST_AUTO_BATCH = 64
_SHARE_OF_FREE_MEMORY = 0.5  # the rest is left to the vision tower's activations and the allocator's gaps


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Group prompts by index into batches of at most `size`, longest first.

    Neighbours in length share a batch, so that little is padding; the longest come first, so that memory that does
    not suffice shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]


def auto_batch_size(free_bytes: int | None, bytes_a_token: int, tokens_a_row: int) -> int:
    """Return how many rows to decode together.

    Args:
        free_bytes: free memory of the device; None on the CPU.
        bytes_a_token: keys, values and prefill activations of one token of one row.
        tokens_a_row: a split page's prompt and answer.

    """
    if free_bytes is None:
        return CPU_BATCH
    fitting = int(free_bytes * _SHARE_OF_FREE_MEMORY) // max(1, bytes_a_token * tokens_a_row)
    return max(1, min(LARGEST_AUTO_BATCH, fitting))
