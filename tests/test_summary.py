from __future__ import annotations

from rich.console import Console

from idefics_cli.results.summary import Summary, summary_table
from tests.test_write import row


def test_rows_are_counted_scored_and_costed() -> None:
    summary = Summary()
    summary.add(row(answer="12.50", vision_ms=30.0, decode_ms=10.0), ("12.50",))
    summary.add(row(answer="x", vision_ms=20.0), ("y",))
    summary.add(row(status="failed", answer="", error="encrypted: needs a password"), ("z",))
    summary.add(row(), ())
    assert (summary.rows, summary.failed, summary.scores.count) == (4, 1, 3)
    assert dict(summary.scores.means())["exact"] == 1 / 3
    console = Console(record=True, width=150)
    console.print(summary_table(summary, skipped=2, pages=4, split_pages=1, seconds=2.0))
    text = console.export_text()
    for words in (
        "1 (1 encrypted)",
        "2 (there already)",
        "4, 1 of them split",
        "2.00 pages/s",
        "vision 83%",
        "exact 33.3%",
    ):
        assert words in text
