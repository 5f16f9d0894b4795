from __future__ import annotations

import io
import sys
import time

import pytest

from idefics_cli.cli.progress import RunState, progress_line
from idefics_cli.pipeline import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_the_goal_counts_rows_that_are_there_and_the_limit() -> None:
    assert RunState(100, progress=Progress(rows=4, skipped=30)).goal == 100
    assert RunState(100, limit=10, progress=Progress(rows=4, skipped=30)).goal == 40
    assert RunState(35, limit=10, progress=Progress(rows=5, skipped=30)).goal == 35
    assert RunState(None, limit=10).goal is None
    assert "34 of 40 rows, 7 pages, 1 failed" in RunState(100, 10, Progress(4, 1, 30, 7)).words()
    assert RunState(None, None, Progress(4, 0, 0, 7)).words().startswith("4 rows, 7 pages, ")
    assert RunState(100).words().startswith("0 of 100 rows, ")


def test_a_line_moves_by_itself_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    words = iter("abcdefghij")
    with progress_line(lambda: f"step {next(words)}") as line:
        time.sleep(1.3)
        with line.hidden():
            print("a message", file=sys.stderr)
    said = terminal.getvalue()
    assert "step b" in said
    assert "a message" in said


def test_nothing_before_the_delay_when_quiet_or_off_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress_line(lambda: "step", delay=5.0) as line, line.hidden():
        pass
    with progress_line(lambda: "step", quiet=True):
        time.sleep(0.1)
    assert terminal.getvalue() == ""
    off = io.StringIO()
    monkeypatch.setattr(sys, "stderr", off)
    with progress_line(lambda: "step"):
        time.sleep(0.1)
    assert off.getvalue() == ""
