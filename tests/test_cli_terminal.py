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


def test_a_run_without_an_output_shows_a_short_table(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    code, shown = on_terminal("run", NOTICE, str(tmp_path / "bad.png"), "--ask", "[bold]Who?")
    assert code == 6
    assert "prompt_tokens" not in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    header = next(line for line in plain.splitlines() if "question" in line and "answer" in line and "document" in line)
    assert re.search(r"document +page +question +answer +conf\. +error", header)
    assert re.search(r"notice\.bmp +1 +\[bold\]Who", plain)
    assert "unsuppo" in plain
    assert "-o FILE writes them to a file" in plain
    assert "rows/s" in plain
    assert " of 2 rows, " in plain


def test_answers_stand_alone_on_the_terminal(tmp_path: Path) -> None:
    code, shown = on_terminal("ask", NOTICE, "Who is the recipient of the letter?")
    assert code == 0
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown).strip().splitlines()[-1]
    assert last == "Diana Censki"
