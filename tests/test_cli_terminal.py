"""What is shown on a terminal, seen through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

from tests.conftest import SAMPLES

NOTICE = str(SAMPLES / "documents" / "notice.bmp")


def on_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """Run a command with stdout and stderr on one terminal; returns its exit code and what was shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment["IDEFICS_CLI_MODEL"] = "tiny"
    process = subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # closed at the other end
            break
    os.close(ours)
    return process.wait(10), shown.decode().replace("\r\n", "\n")


def screen(shown: str) -> list[str]:
    """The lines that are left of what was written to a terminal."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", shown):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_a_run_without_an_output_shows_a_short_table(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    code, shown = on_terminal("run", NOTICE, str(tmp_path / "bad.png"), "--ask", "[bold]Who?")
    assert code == 6
    assert "prompt_tokens" not in shown
    assert " of 2 rows, " in shown  # the progress line, which goes away
    left = "\n".join(screen(shown))
    assert " of 2 rows, " not in left
    assert re.search(r"document +page +question +answer +conf\. +error", left)
    assert re.search(r"notice\.bmp +1 +\[bold\]Who", left)
    assert re.search(r"bad\.png +\[bold\]Who\? +unsuppo", left)
    assert "-o FILE writes them to a file" in left
    assert "rows/s" in left


def test_answers_are_all_that_is_left_on_the_terminal() -> None:
    code, shown = on_terminal("ask", NOTICE, "Who is the recipient of the letter?")
    assert code == 0
    assert screen(shown) == ["Diana Censki"]


def test_prepare_says_what_it_is_doing_while_it_does(tmp_path: Path) -> None:
    code, shown = on_terminal("prepare", "tiny", "-o", str(tmp_path / "made"))
    assert code == 0
    assert re.search(r"reading the checkpoint|GB written", shown)
    assert not any(re.search(r"reading|written", line) for line in screen(shown))
