"""Outputs that are somebody's: whatever `-o` names, nothing is touched that a run may not touch."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, Run

NOTICE = SAMPLES / "documents" / "notice.bmp"
RUN = [sys.executable, "-m", "idefics_cli", "run", "--model", "tiny", "--quiet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IDEFICS_CLI_MODEL", "tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copy(NOTICE, "notice.bmp")
    (tmp_path / "q.csv").write_text("question,document\nWho?,notice.bmp\n")
    (tmp_path / "q.jsonl").write_text('{"question": "Who?", "document": "notice.bmp"}')  # without a final newline
    return tmp_path


def snapshot(folder: Path) -> dict[str, object]:
    """What a folder holds: contents, links and modes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        else:
            found[str(path)] = stat.S_IFMT(path.stat().st_mode)
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def test_inputs_and_files_of_others_stay_as_they_are(cli: Run, here: Path) -> None:
    (here / "theirs.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    (here / "notes.txt").write_text("milk, eggs\nbread")  # without a final newline
    (here / "table.csv").write_text("name,amount\na,1\nb,2")
    (here / "empty-header.csv").write_text("document,page\n")
    (here / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (here / "folder.csv").mkdir()
    (here / "link.csv").symlink_to("q.csv")
    (here / "loop.csv").symlink_to("loop.csv")
    (here / "hard.csv").hardlink_to(here / "q.csv")
    before = snapshot(here)
    questions_jsonl = ("run", "-q", "q.jsonl", "-o")
    refused = [
        (*questions_jsonl, "q.jsonl", "--resume"),
        (*questions_jsonl, "theirs.jsonl", "--resume"),
        (*questions_jsonl, "notes.txt", "--resume"),
        ("run", "-q", "q.csv", "-o", "link.csv", "--overwrite"),
        ("run", "-q", "q.csv", "-o", "hard.csv", "--overwrite"),
        ("run", "-q", "q.csv", "-o", "notice.bmp", "--overwrite"),
        ("run", "notice.bmp", "--ask", "Who?", "-o", "./notice.bmp", "--overwrite"),
        ("run", "-q", "q.csv", "-o", "table.csv", "--resume"),
        ("run", "-q", "q.csv", "-o", "table.csv"),
        ("run", "-q", "q.csv", "-o", "empty-header.csv", "--resume"),
        ("run", "-q", "q.csv", "-o", "binary.csv", "--resume"),
        ("run", "-q", "q.csv", "-o", "folder.csv", "--overwrite"),
        ("run", "-q", "q.csv", "-o", "loop.csv", "--overwrite"),
        ("run", "-q", "q.csv", "-o", "gone/out.csv"),
        ("run", "-q", "q.csv", "-o", "notice.bmp/out.csv"),
        ("run", "-q", "q.csv", "-o", f"{'n' * 300}.csv"),
        ("run", "-q", "q.csv", "-o", "/dev/null", "--resume"),
    ]
    found = {}
    for arguments in refused:
        done = cli(*arguments, cwd=here)
        if (done.returncode, done.stdout, done.stderr.count("\n")) != (5, "", 1) or snapshot(here) != before:
            found[arguments] = (done.returncode, done.stderr, [*snapshot(here)])
    assert found == {}


def test_streams_and_devices_are_written_to(cli: Run, here: Path) -> None:
    os.mkfifo("fifo")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((here / "fifo").read_bytes()))
    reader.start()
    assert cli("run", "-q", "q.csv", "-o", "fifo", "--overwrite", "--format", "jsonl").returncode == 0
    reader.join(10)
    assert json.loads(read[0])["status"] == "ok"
    assert stat.S_ISFIFO(Path("fifo").stat().st_mode)
    assert cli("run", "-q", "q.csv", "-o", "/dev/null", "--overwrite").returncode == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    full = cli("run", "-q", "q.csv", "-o", "/dev/full")
    assert (full.returncode, "can't write /dev/full: No space left" in full.stderr, full.stderr.count("Traceback")) == (
        5,
        True,
        0,
    )
    with Path("/dev/full").open("w") as stdout:
        done = subprocess.run([*RUN, "-q", "q.csv"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "No space left" in done.stderr, done.stderr.count("Traceback")) == (5, True, 0)


def test_links_are_followed_and_modes_kept(cli: Run, here: Path) -> None:
    (here / "there").mkdir()
    (here / "out.csv").symlink_to("there/real.csv")
    assert cli("run", "-q", "q.csv", "-o", "out.csv").returncode == 0
    Path("there/real.csv").chmod(0o640)
    assert cli("run", "-q", "q.csv", "-o", "out.csv", "--overwrite").returncode == 0
    assert Path("out.csv").is_symlink()
    assert stat.S_IMODE(Path("there/real.csv").stat().st_mode) == 0o640
    assert [row["status"] for row in rows_of(Path("there/real.csv"))] == ["ok"]
    assert sorted(path.name for path in here.rglob("*")) == sorted(
        ["notice.bmp", "out.csv", "q.csv", "q.jsonl", "real.csv", "there"]
    )


def limited(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_disk_that_fills_up_leaves_whole_rows_to_go_on_from(here: Path) -> None:
    texts = [argument for number in range(8) for argument in ("--ask", f"What is item {number}?")]
    command = [*RUN, "notice.bmp", *texts, "-o", "out.csv"]
    for size, rows in ((0, None), (1000, 2), (2**20, 8)):
        done = subprocess.run(
            [*command, "--resume"], preexec_fn=limited(size), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == (0 if rows == 8 else 5), done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == (rows != 8), done.stderr
        if rows is None:
            assert not Path("out.csv").exists()
        else:
            assert len(rows_of(Path("out.csv"))) == rows or size == 1000
    assert [row["question"] for row in rows_of(Path("out.csv"))] == texts[1::2]
    assert list(here.glob(".*")) == []


def test_the_second_of_two_runs_on_an_output_is_told_so_by_any_name(here: Path) -> None:
    (here / "link.csv").symlink_to("out.csv")
    first = subprocess.Popen([*RUN, "notice.bmp", "-q", "-", "-o", "out.csv"], stdin=subprocess.PIPE)
    assert first.stdin
    first.stdin.write(b'{"question": "Who?"}\n')
    first.stdin.flush()
    deadline = time.monotonic() + 30
    while not (Path("out.csv").exists() and len(rows_of(Path("out.csv"))) == 1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (here / "hard.csv").hardlink_to(here / "out.csv")
    before = Path("out.csv").read_bytes()
    for name in ("out.csv", "link.csv", "hard.csv"):
        for how in ("--resume", "--overwrite"):
            second = subprocess.run([*RUN, "-q", "q.csv", "-o", name, how], capture_output=True, text=True)
            assert (second.returncode, second.stderr.count("\n")) == (75, 1), second.stderr
    assert Path("out.csv").read_bytes() == before
    first.stdin.close()
    assert first.wait(20) == 0
    assert len(rows_of(Path("out.csv"))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_may_not_be_written_to_are_said(cli: Run, here: Path) -> None:
    (here / "closed").mkdir(mode=0o500)
    done = cli("run", "-q", "q.csv", "-o", "closed/out.csv")
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
