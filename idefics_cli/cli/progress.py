"""Progress on stderr: a tqdm bar on a terminal, one plain line a minute otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from idefics_cli.pipeline import Progress

_LINE_EVERY = 60.0  # seconds


class Reporter:
    """Shows rows and pages as they are done."""

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(total=total, unit="question", file=sys.stderr, dynamic_ncols=True)
        self._started = self._said = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Say how far the run is, if it is time to."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{progress.pages} pages", refresh=False)
            self._bar.update(progress.rows + progress.skipped - self._bar.n)
        elif not self._quiet and time.monotonic() - self._said > _LINE_EVERY:
            self._said = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            rate = progress.rows / max(1e-9, self._said - self._started)
            print(
                f"{progress.rows}{of} questions, {progress.pages} pages, {rate:.2f} questions/s, "
                f"{progress.failed} failed",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def reporting(total: int | None, *, quiet: bool) -> Iterator[Reporter]:
    """Report progress while the block runs."""
    reporter = Reporter(total, quiet=quiet)
    try:
        yield reporter
    finally:
        reporter.close()
