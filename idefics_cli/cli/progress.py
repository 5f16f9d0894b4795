"""A progress line on a terminal's stderr, which moves by itself."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idefics_cli.pipeline import Progress

_REFRESHES_PER_SECOND = 2
_BAR_WIDTH = 24


@dataclass(slots=True)
class RunState:
    """How far a run is, as its threads know it."""

    total: int | None = None
    """Questions; None where that is not known."""
    limit: int | None = None
    """Rows that are asked at most."""
    progress: Progress | None = None
    """None before the first row."""
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Rows that are there, those of earlier runs included."""
        return self.progress.rows + self.progress.skipped if self.progress else 0

    @property
    def goal(self) -> int | None:
        """Rows that will be there."""
        if self.total is None or self.limit is None:
            return self.total
        return min(self.total, (self.progress.skipped if self.progress else 0) + self.limit)

    def words(self) -> str:
        """Say it."""
        seconds = time.monotonic() - self.started
        words = [f"{self.done:,} rows" if self.goal is None else f"{self.done:,} of {self.goal:,} rows"]
        if self.progress:
            words += [f"{self.progress.pages:,} pages"]
            words += [f"{self.progress.failed:,} failed"] * bool(self.progress.failed)
        words.append(_clock(seconds))
        if self.progress and self.progress.rows and self.goal:
            left = seconds / self.progress.rows * max(0, self.goal - self.done)
            words.append(f"about {_clock(left)} left")
        return ", ".join(words)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class ProgressLine:
    """The line itself, a tqdm bar; nothing where stderr is no terminal."""

    def __init__(self, words: Callable[[], str], state: RunState | None = None) -> None:
        """Take what the line says.

        Args:
            words: asked for several times a second, from another thread.
            state: for a bar before the words.

        """
        self._words, self._state = words, state
        self._bar: Any = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def show(self) -> None:
        """Show the line from now on."""
        from tqdm import tqdm

        goal = self._state.goal if self._state is not None else None
        with self._lock:
            if self._is_closed.is_set():
                return
            self._bar = tqdm(
                total=goal,
                file=sys.stderr,
                leave=False,
                ncols=shutil.get_terminal_size().columns,
                nrows=shutil.get_terminal_size().lines,
                bar_format=f"|{{bar:{_BAR_WIDTH}}}| {{desc}}" if goal else "{desc}",
            )
        threading.Thread(target=self._move, name="progress", daemon=True).start()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the line away while something else is printed on the terminal."""
        with self._lock:
            if self._bar is not None:
                self._bar.clear()
            try:
                yield
            finally:
                if self._bar is not None:
                    self._bar.refresh()

    def close(self) -> None:
        """Take the line away."""
        self._is_closed.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _move(self) -> None:
        """Refresh the line until it is closed: rows may be long in coming."""
        while True:
            with self._lock:
                if self._bar is None:
                    return
                self._bar.ncols = shutil.get_terminal_size().columns  # it may have been resized
                self._bar.desc = self._words()
                if self._state is not None and self._state.goal:
                    self._bar.n = min(self._state.done, self._state.goal)
                self._bar.refresh()
            if self._is_closed.wait(1 / _REFRESHES_PER_SECOND):
                return


@contextmanager
def progress_line(
    words: Callable[[], str], *, state: RunState | None = None, delay: float = 0.0, quiet: bool = False
) -> Iterator[ProgressLine]:
    """Show a line while the block runs, on a terminal only, and from so many seconds on."""
    line = ProgressLine(words, state)
    timer = threading.Timer(delay, line.show)
    timer.daemon = True
    if sys.stderr.isatty() and not quiet:
        timer.start()
    try:
        yield line
    finally:
        timer.cancel()
        line.close()
