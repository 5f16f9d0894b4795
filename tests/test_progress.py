from __future__ import annotations

import io
import sys

import pytest

from idefics_cli.cli import progress
from idefics_cli.cli.progress import reporting
from idefics_cli.pipeline import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with reporting(10, quiet=False) as reporter:
        reporter.show(Progress(rows=4, skipped=3, pages=2))
    assert "7/10" in terminal.getvalue()
    assert "2 pages" in terminal.getvalue()


def test_a_plain_line_a_minute_otherwise_and_nothing_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reporting(10, quiet=False) as reporter:
        reporter.show(Progress(rows=1))
        assert capsys.readouterr().err == ""  # the minute is not over
        monkeypatch.setattr(progress, "_LINE_EVERY", -1.0)
        reporter.show(Progress(rows=4, pages=2, failed=1))
    assert capsys.readouterr().err.startswith("4 of 10 questions, 2 pages, ")
    with reporting(None, quiet=True) as reporter:
        reporter.show(Progress(rows=4))
    assert capsys.readouterr().err == ""
