"""`run --dry-run`: says what a run would do, and ends with the exit code that the input alone would give."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console
from rich.table import Table

from idefics_cli.rehearsal import Rehearsal

_SHOWN = 20  # failing documents


def report(rehearsal: Rehearsal, seconds_a_row: float | None, console: Console) -> None:
    """Print what a run would do."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("rows to ask", str(rehearsal.rows))
    table.add_row("rows that are there", str(rehearsal.skipped))
    table.add_row("pages", f"{rehearsal.pages}, {rehearsal.split_pages} of them split")
    table.add_row("rows that fail for their input", str(rehearsal.failed))
    if seconds_a_row is None:
        table.add_row("time", "no earlier rows to tell it from")
    else:
        left = timedelta(seconds=round(seconds_a_row * (rehearsal.rows - rehearsal.failed)))
        table.add_row("time", f"about {left}, from {seconds_a_row:.2f} s an earlier row")
    console.print(table)
    for words, count in rehearsal.failures.most_common(_SHOWN):
        console.print(f"  {words}" + (f" ({count} rows)" if count > 1 else ""), markup=False, highlight=False)
    if len(rehearsal.failures) > _SHOWN:
        console.print(f"  ... and {len(rehearsal.failures) - _SHOWN} more")
