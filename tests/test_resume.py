"""Processes that write one output: killed at any moment, or two at once."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idefics_cli.config import Format, OutputSettings
from idefics_cli.results.check import read_state
from idefics_cli.results.read import OutputReader
from tests.output_rows import VALUES, key, read_all

ROWS = 400
WRITE = """
import io, sys, time
from pathlib import Path
from idefics_cli.config import Format, OutputSettings
from idefics_cli.errors import IdeficsCliError
from idefics_cli.results.output import open_output
from tests.output_rows import VALUES, key, row
path, rows, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
settings = OutputSettings(path, Format(sys.argv[4]), resume=True)
try:
    with open_output(settings, ["note"], io.StringIO(), VALUES) as output:
        print("open", flush=True)
        for number in range(rows):
            one = row(key=key(number // 2), question='two "lines"\\n\\u2028' * (number % 40), extra={"note": "\\r"})
            if not output.answered.take(one.key):
                output.write(one)
                time.sleep(pause)
except IdeficsCliError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(path: Path, form: str, rows: int = ROWS, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, str(path), str(rows), str(pause), form]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_writers_end_like_one_that_was_left_alone(tmp_path: Path, form: str, kills: int) -> None:
    rng = random.Random(kills)
    undisturbed, path = tmp_path / f"undisturbed.{form}", tmp_path / f"out.{form}"
    with start(undisturbed, form) as process:
        assert process.wait(60) == 0
    killed = 0
    for _ in range(kills):
        with start(path, form, pause=0.002) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            killed += process.wait(60) < 0
    assert killed > kills / 3
    with start(path, form) as process:
        assert process.wait(60) == 0
    assert path.read_bytes() == undisturbed.read_bytes()
    assert len(read_all(path)) == ROWS


def test_two_writers_of_one_file_even_by_different_names(tmp_path: Path) -> None:
    path, link = tmp_path / "out.csv", tmp_path / "link.csv"
    link.symlink_to("out.csv")
    with start(path, "csv", pause=10) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with start(link, "csv") as second:
            words = second.communicate(timeout=60)[1]
        assert second.returncode == 75
        assert f"process {first.pid}" in words
        first.kill()
    with start(link, "csv") as second:
        assert second.wait(60) == 0
    assert [one["key"] for one in read_all(path)] == [key(number // 2) for number in range(ROWS)]


@pytest.mark.parametrize("form", list(Format))
def test_many_rows_are_read_in_little_time(tmp_path: Path, form: Format) -> None:
    """100,000 rows in a hundredth of the two minutes that ten millions may take, with room for a slow machine."""
    path = tmp_path / "out"
    with start(path, form, rows=2) as process:
        assert process.wait(60) == 0
    line = list(OutputReader(path))[-1].raw
    with path.open("ab") as stream:
        stream.write(b"".join(line.replace(key(0).encode(), key(number).encode()) for number in range(100_000)))
    started = time.process_time()
    state = read_state(OutputSettings(path, form, resume=True), ["note"], VALUES)
    assert state.rows == 100_002
    assert time.process_time() - started < 5


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk fail")
@pytest.mark.parametrize(("fault", "code"), [("EIO", 5), ("EINVAL", 0)])
@pytest.mark.parametrize("what", ["the folder of a new output", "the rows at the end", "the rows in the background"])
def test_a_disk_that_fails_to_sync_is_exit_5(tmp_path: Path, what: str, fault: str, code: int) -> None:
    path = tmp_path / "out.csv"
    if what != "the folder of a new output":
        with start(path, "csv", rows=2) as process:
            assert process.wait(60) == 0
    pause = "0.004" if what == "the rows in the background" else "0"
    broken = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=fsync:error={fault}"]
    command = [*broken, sys.executable, "-c", WRITE, str(path), str(ROWS), pause, "csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "ptrace" in done.stderr:
        pytest.skip("no process may be traced here")
    assert (done.returncode, "Input/output error" in done.stderr) == (code, bool(code))
    assert path.exists() == (code == 0 or what != "the folder of a new output")
