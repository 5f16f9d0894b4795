"""Sums a run up: rows, speed, where the time went, and accuracy where answers were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.table import Table

from idefics_cli.metrics import FullStop, Scores, score
from idefics_cli.records import COST_COLUMNS, Row


@dataclass(slots=True)
class Summary:
    """What the rows of a run add up to."""

    rows: int = 0
    failed: int = 0
    costs: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COST_COLUMNS, 0.0))
    """Milliseconds by cost column."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed rows by kind."""
    scores: ScoreSum = field(default_factory=lambda: ScoreSum())

    def add(self, row: Row, accepted: tuple[str, ...]) -> None:
        """Count a row, and score it where accepted answers are known."""
        self.rows += 1
        for column in COST_COLUMNS:
            self.costs[column] += getattr(row, column) or 0.0
        if row.status == "failed":
            self.failed += 1
            self.errors[row.error.partition(":")[0]] += 1
        if accepted:
            self.scores.add(score(row.answer, accepted, FullStop.STRIP) if row.status == "ok" else NO_ANSWER)


NO_ANSWER = Scores(0.0, 0.0, 0.0, 0.0)
"""What a failed row scores."""


@dataclass(slots=True)
class ScoreSum:
    """Adds scores up without keeping them."""

    count: int = 0
    anls: float = 0.0
    exact: float = 0.0
    relaxed: float = 0.0
    vqa: float = 0.0

    def add(self, scores: Scores) -> None:
        """Add one answer's scores."""
        self.count += 1
        self.anls += scores.anls
        self.exact += scores.exact
        self.relaxed += scores.relaxed
        self.vqa += scores.vqa

    def means(self) -> Iterator[tuple[str, float]]:
        """Yield each metric's name and mean, 0 to 1."""
        for name in ("anls", "exact", "relaxed", "vqa"):
            yield name, getattr(self, name) / max(1, self.count)


def summary_table(summary: Summary, *, skipped: int, pages: int, split_pages: int, seconds: float) -> Table:
    """Build the table that `run` ends with.

    Args:
        summary: the rows' sums.
        skipped: rows that were there already.
        pages: pages prepared.
        split_pages: those of them that were split.
        seconds: wall time of the run, loading apart.

    """
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("answered", f"{summary.rows - summary.failed}")
    if summary.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.errors.most_common())
        table.add_row("failed", f"{summary.failed} ({kinds})", style="red")
    if skipped:
        table.add_row("skipped", f"{skipped} (there already)")
    table.add_row("pages", f"{pages}, {split_pages} of them split")
    pace = f"{pages / max(seconds, 1e-9):.2f} pages/s, {summary.rows / max(seconds, 1e-9):.2f} questions/s"
    table.add_row("time", f"{seconds:.1f} s: {pace}")
    spent = sum(summary.costs.values())
    if spent:
        shares = ", ".join(f"{column.removesuffix('_ms')} {cost / spent:.0%}" for column, cost in summary.costs.items())
        table.add_row("spent on", shares)
    if summary.scores.count:
        means = ", ".join(f"{name} {value:.1%}" for name, value in summary.scores.means())
        table.add_row("accuracy", f"{means} (over {summary.scores.count} rows with answers; full stops stripped)")
    return table
