"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """What a run has done so far."""

    rows: int = 0
    failed: int = 0
    skipped: int = 0
    """Rows that were there already."""
    pages: int = 0
    split_pages: int = 0
