"""What `run` says of its rows: while they come, at the end, and beforehand."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING

from idefics_cli.cli.console import note, print_table, summary
from idefics_cli.cli.progress import progress_line
from idefics_cli.errors import one_line

if TYPE_CHECKING:
    from idefics_cli.batch import BatchResult
    from idefics_cli.config import RunSettings
    from idefics_cli.records import Row
    from idefics_cli.results.stats import RunStats
    from idefics_cli.workers.state import WorkerShare

_SHOWN = 20  # failing documents
_SHARES = (("document", 3), ("question", 3), ("answer", 4), ("error", 2))
_PAGE, _CONFIDENCE = 5, 5


class RowTable:
    """Prints rows as they come, one line each, cut to the width of the terminal."""

    def __init__(self, stdout: IO[str]) -> None:
        self._stdout = stdout
        try:
            columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stdout.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        room = max(40, (columns or 80) - _PAGE - _CONFIDENCE - 6)
        parts = sum(share for _, share in _SHARES)
        self._widths = {name: max(5, room * share // parts) for name, share in _SHARES}
        self._widths |= {"page": _PAGE, "conf.": _CONFIDENCE}
        self._is_begun = False

    def print(self, row: Row) -> None:
        """Print a row, after the header if it is the first."""
        if not self._is_begun:
            self._line({name: name for name in self._widths})
            self._is_begun = True
        confidence = "" if row.confidence is None else f"{row.confidence:.2f}"
        self._line(
            {
                "document": row.document,
                "page": row.page,
                "question": row.question,
                "answer": row.answer,
                "conf.": confidence,
                "error": row.error,
            }
        )

    def _line(self, cells: Mapping[str, str]) -> None:
        from rich.cells import cell_len, set_cell_size

        texts = []
        for name in ("document", "page", "question", "answer", "conf.", "error"):
            text, width = one_line(cells[name]), self._widths[name]
            if cell_len(text) > width and name == "document":  # of a path the end tells documents apart
                while cell_len(text) > width - 1:
                    text = text[1:]
                text = f"…{text}"
            elif cell_len(text) > width:
                text = f"{set_cell_size(text, width - 1)}…"
            texts.append(set_cell_size(text, width))
        print(" ".join(texts).rstrip(), file=self._stdout, flush=True)


def report_run(result: BatchResult, settings: RunSettings) -> None:
    """Say what a run has come to: one line for a log, several figures on a terminal; then name what failed."""
    stats = result.stats
    for words in [*result.notes, *map(share_words, result.workers)]:
        note(words)
    if settings.messages.quiet or not sys.stderr.isatty():
        summary(_log_line(result, settings), is_failure=bool(stats.failed))
    else:
        _print_figures(result)
    for words in _failed_words(stats, settings.output.path):
        summary(words, is_failure=True)


def _print_figures(result: BatchResult) -> None:
    from rich.table import Table

    stats, progress = result.stats, result.progress

    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = [("rows", ", ".join([f"{stats.rows:,}", *_kept(result)]))]
    if stats.failed:
        rows.append(("failed", f"{stats.failed:,}: {_kinds(stats.failures)}"))
    rows.append(("pages", f"{progress.pages:,}, {progress.split_pages:,} of them split"))
    rate = f", {stats.rows / result.seconds:.2f} rows/s" if result.seconds and stats.rows else ""
    rows.append(("time", f"{result.seconds:.1f} s{rate}"))
    if shares := stats.cost_shares():
        rows.append(("spent on", ", ".join(f"{name} {share:.0%}" for name, share in shares.items())))
    if stats.scores.count:
        from idefics_cli.results.metrics import figure_name

        figures = (f"{figure_name(name, stats.full_stop)} {value:.1%}" for name, value in stats.scores.means.items())
        rows.append(("scores", ", ".join(figures)))
    for name, words in rows:
        table.add_row(name, words)
    print_table(table, sys.stderr)


def share_words(share: WorkerShare) -> str:
    """Say what a worker did, how fast, and how much of the time it had nothing to do."""
    counts = ((share.rows, "row"), (share.pages, "page"))
    words = [", ".join(f"{number:,} {thing}{'s' * (number != 1)}" for number, thing in counts)]
    if share.seconds:
        words.append(f"{share.pages / share.seconds:.2f} pages/s since the model was loaded")
        words.append(f"idle {share.idle_s:.1f} s ({share.idle_s / share.seconds:.0%})")
    if share.losses:
        words.append(f"started again {share.losses:,} times" if share.losses > 1 else "started again once")
    return f"{share.name}: {', '.join(words)}"


def _failed_words(stats: RunStats, output: Path | None) -> Iterator[str]:
    """Name the first few documents that failed, and say how all failed rows are listed."""
    for name, document in stats.failed_documents.items():
        rows = f" ({document.rows:,} rows)" if document.rows > 1 else ""
        yield f"failed: {one_line(f'{name}: {document.error}' if name else document.error)}{rows}"
    if more := stats.failed_unnamed:
        words = f"failed: {more:,} more row{'s' * (more > 1)}"
        yield words if output is None else f"{words}; idefics-cli status {quote(str(output))} --failed lists all"


def _log_line(result: BatchResult, settings: RunSettings) -> str:
    stats, path = result.stats, settings.output.path
    words = [f"{stats.rows:,} row{'s' * (stats.rows != 1)}", *_kept(result)]
    words.append(f"{stats.failed:,} failed ({_kinds(stats.failures)})" if stats.failed else "0 failed")
    words.append(f"{result.seconds:.1f} s")
    if stats.scores.count:
        words.append(f"exact {stats.scores.means['exact']:.1%} of {stats.scores.count:,}")
    return f"{path if path is not None else 'stdout'}: {', '.join(words)}"


def _kept(result: BatchResult) -> list[str]:
    """Say how many rows stay as they were, if any do, and that some of them are failed ones."""
    skipped, failed = result.progress.skipped, result.kept_failed
    if not skipped:
        return []
    return [f"{skipped:,} kept ({failed:,} failed)" if failed else f"{skipped:,} already answered"]


def _kinds(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(failures.items(), key=lambda entry: -entry[1]))


def report_dry_run(
    documents: Sequence[str], questions: str | Sequence[str], settings: RunSettings, stdout: IO[str]
) -> bool:
    """Print what a run would do; says whether rows would fail for their input.

    Raises:
        IdeficsCliError: what the run would be refused for.

    """
    from rich.table import Table
    from rich.text import Text

    from idefics_cli import batch

    with progress_line(lambda: "going through documents and questions", quiet=settings.messages.quiet):
        found = batch.dry_run(documents, questions, settings, on_note=note)
    for words in found.notes:
        note(words)
    progress, seconds = found.progress, found.seconds_per_row
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("rows to ask", f"{progress.rows:,}")
    if found.workers:
        table.add_row("workers", found.workers)
    table.add_row("rows already answered", f"{progress.skipped:,}")
    table.add_row("pages", f"{progress.pages:,}, {progress.split_pages:,} of them split")
    table.add_row("rows that fail for their input", f"{progress.failed:,}")
    if seconds is None:
        table.add_row("time", "no earlier rows to tell it from")
    else:
        left = timedelta(seconds=round(seconds * (progress.rows - progress.failed)))
        table.add_row("time", f"about {left}, from {seconds:.2f} s per earlier row")
    for words, count in found.failures.most_common(_SHOWN):
        table.add_row("", Text(one_line(words) + (f" ({count} rows)" if count > 1 else "")))
    if len(found.failures) > _SHOWN:
        table.add_row("", f"... and {len(found.failures) - _SHOWN} more")
    print_table(table, stdout)
    return bool(progress.failed)
