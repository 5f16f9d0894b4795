"""Options, streams and surroundings that nobody would choose: each ends with the exit code and the words it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, Run

PROGRAM = f"{sys.executable} -m idefics_cli"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IDEFICS_CLI_MODEL", "tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "documents" / "notice.bmp", "notice.bmp")
    Path("q.csv").write_text("question,document\nWho?,notice.bmp\n")
    return tmp_path


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


def test_closed_streams_are_neither_tracebacks_nor_taken_by_files(here: Path) -> None:
    for command, code, words in (
        ("ask notice.bmp Who? >&-", 5, "error: can't write to stdout: Bad file descriptor"),
        ("--help >&-", 5, "error: can't write to stdout: Bad file descriptor"),
        ("--version >/dev/full", 5, "error: can't write to stdout: No space left on device"),
        ("run -q - <&-", 3, "error: -: Bad file descriptor"),
        ("run -q q.csv -o 1.csv <&- >&- 2>&-", 0, ""),
        ("ask gone.bmp Who? 2>&-", 3, ""),
        ("ask notice.bmp Who? 2>/dev/full", 0, ""),
    ):
        done = shell(f"{PROGRAM} {command}")
        said = done.stderr.strip().partition("Z ")[2] or done.stderr.strip()
        assert (done.returncode, said) == (code, words), command
    lines = Path("1.csv").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("document,page,")


def test_limits_beyond_reason_are_rows_like_any_other(cli: Run, here: Path) -> None:
    for options, code in (
        (("--batch-size", "1000000", "--page-timeout", "1e300", "--limit", "9" * 30), 0),
        (("--max-new-tokens", "999999999999"), 6),
    ):
        done = cli("run", "-q", "q.csv", "-o", "out.csv", "--overwrite", *options, cwd=here)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert len(Path("out.csv").read_text().splitlines()) == 2
    assert "(--max-new-tokens); the model takes 4096 together" in done.stderr


def test_an_empty_question_is_said_to_be_empty(cli: Run, here: Path) -> None:
    done = cli("ask", "notice.bmp", "", cwd=here)
    assert (done.returncode, done.stderr) == (3, "error: question 1 is empty\n")


def test_what_an_option_does_not_take_is_said_with_what_it_does(cli: Run, here: Path) -> None:
    for option, value, words in (
        ("--format", "xml", "Invalid value for '--format': 'xml' is not one of 'csv', 'jsonl', 'openai-batch' (see"),
        ("--root", "q.csv", "--root q.csv: no folder"),
        ("--revision", "v2", "--revision is for checkpoints of the hub, and tiny is embedded: leave it out"),
    ):
        done = cli("run", "-q", "q.csv", option, value, cwd=here)
        assert (done.returncode, f"error: {words}" in done.stderr) == (2, True), done.stderr
