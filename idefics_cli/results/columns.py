"""The columns of an output: our own, with the user's inserted after `id`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from idefics_cli.records import COLUMNS

BEFORE = COLUMNS[: COLUMNS.index("id") + 1]
"""Our columns up to `id`."""
AFTER = COLUMNS[len(BEFORE) :]
"""Our columns after the user's."""
_SUFFIX = "_input"


def user_columns(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Map the user's columns to columns of the output: one that bears the name of ours gets a suffix.

    Args:
        names: the user's columns.
        known: those that are mapped already; they keep their columns.

    """
    mapped = dict(known or {})
    new = [name for name in names if name not in mapped]
    taken = {*COLUMNS, *mapped.values()}
    for name in sorted(new, key=lambda name: name in COLUMNS):  # a name that is free keeps itself
        column = name
        while column in taken:
            column += _SUFFIX
        taken.add(column)
        mapped[name] = column
    return {name: mapped[name] for name in [*(known or {}), *new]}


def output_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of an output, given the user's."""
    return (*BEFORE, *user_columns(names).values(), *AFTER)


def own_columns(header: Sequence[str]) -> tuple[str, ...] | None:
    """Return the user's columns of an output's header; None when it is not the header of an output."""
    end = len(header) - len(AFTER)
    if end < len(BEFORE) or tuple(header[: len(BEFORE)]) != BEFORE or tuple(header[end:]) != AFTER:
        return None
    return tuple(header[len(BEFORE) : end])
