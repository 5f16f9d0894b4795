from __future__ import annotations

from idefics_cli.results.stats import RunStats
from tests.output_rows import failed, row


def test_rows_are_counted_scored_and_costed() -> None:
    stats = RunStats()
    stats.add(row(answer="12.50", vision_ms=30.0, decode_ms=10.0), ("12.50",))
    stats.add(row(answer="x", vision_ms=20.0), ("y",))
    stats.add(failed(1), ("z",))
    stats.add(row())
    assert (stats.rows, stats.failed, stats.scores.count) == (4, 1, 3)
    assert stats.failures == {"encrypted": 1}
    assert stats.scores.means["exact"] == 1 / 3
    assert stats.costs["vision_ms"] == 50.0
    shares = stats.cost_shares()
    assert (shares["vision"], shares["decode"], shares["raster"]) == (5 / 6, 1 / 6, 0.0)


def test_nothing_was_run() -> None:
    assert RunStats().cost_shares() == {}
    assert RunStats().scores.means == {}
