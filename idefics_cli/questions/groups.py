"""Rows of a questions file by the documents that they are asked of."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def rows_of_groups(
    targets: array[int], pairs: tuple[array[int], array[int]], target_count: int, group_count: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows that are asked of each group, in the order of the file.

    Args:
        targets: the set of groups that each row is asked of, by number.
        pairs: a group and a target that it belongs to.
        target_count: how many targets there are.
        group_count: how many groups there are.

    """
    numbers = np.array(targets, np.uint32)
    rows = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=target_count))
    begins = np.concatenate(([0], ends))
    groups, members = (np.array(each, np.uint32) for each in pairs)
    by_group = members[np.argsort(groups, kind="stable")]
    limits = np.concatenate(([0], np.cumsum(np.bincount(groups, minlength=group_count))))
    for group in range(group_count):
        parts = [rows[begins[target] : ends[target]] for target in by_group[limits[group] : limits[group + 1]]]
        yield parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
