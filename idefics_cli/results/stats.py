"""What the rows of a run add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from idefics_cli.records import COST_COLUMNS, Row
from idefics_cli.results.metrics import METRICS, FullStop, Scores, score

_MOST_NAMED = 5


@dataclass(slots=True)
class ScoreSum:
    """Adds scores up without keeping them."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(METRICS, 0.0))

    def add(self, scores: Scores | None) -> None:
        """Add the scores of one answer; None of a failed row, which scores 0."""
        self.count += 1
        if scores is not None:
            for name in METRICS:
                self.sums[name] += getattr(scores, name)

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric, 0 to 1; empty where nothing was scored."""
        return {name: total / self.count for name, total in self.sums.items()} if self.count else {}


@dataclass(slots=True)
class FailedDocument:
    """A document whose rows failed."""

    error: str
    """Of its first failed row."""
    rows: int = 0


@dataclass(slots=True)
class RunStats:
    """Counts, costs and scores of a run's rows."""

    full_stop: FullStop = FullStop.STRIP
    """How answers are scored."""
    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed rows by kind."""
    failed_documents: dict[str, FailedDocument] = field(default_factory=dict)
    """The first few, by name."""
    costs: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COST_COLUMNS, 0.0))
    """Milliseconds by cost column."""
    scores: ScoreSum = field(default_factory=ScoreSum)

    @property
    def failed(self) -> int:
        """Failed rows."""
        return self.failures.total()

    def add(self, row: Row, accepted: Sequence[str] = ()) -> None:
        """Count a row, and score it where accepted answers are known."""
        self.rows += 1
        for column in COST_COLUMNS:
            self.costs[column] += getattr(row, column) or 0.0
        is_failed = row.status == "failed"
        if is_failed:
            self.failures[row.error.partition(":")[0]] += 1
            self._name(row)
        if accepted:
            self.scores.add(None if is_failed else score(row.answer, accepted, self.full_stop))

    def _name(self, row: Row) -> None:
        if row.document in self.failed_documents or len(self.failed_documents) < _MOST_NAMED:
            self.failed_documents.setdefault(row.document, FailedDocument(row.error)).rows += 1

    @property
    def failed_unnamed(self) -> int:
        """Failed rows of documents that are not among `failed_documents`."""
        return self.failed - sum(document.rows for document in self.failed_documents.values())

    def cost_shares(self) -> dict[str, float]:
        """Return each cost's share of what was spent, by name without `_ms`; empty where nothing was spent."""
        spent = sum(self.costs.values())
        return {name.removesuffix("_ms"): cost / spent for name, cost in self.costs.items()} if spent else {}
