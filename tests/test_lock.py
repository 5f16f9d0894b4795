from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from idefics_cli.errors import OutputBusyError, OutputError
from idefics_cli.results.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from idefics_cli.results.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_holds_the_output(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with locked(path):
        with pytest.raises(OutputBusyError, match=f"process {os.getpid()}"), locked(path):
            pass
        with locked(tmp_path / "other.csv"):
            pass
    with locked(path):
        pass
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputBusyError, match=f"process {holder.pid}"), locked(path):
            pass
        holder.send_signal(signal.SIGKILL)
        with locked(path, wait=10):
            pass


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), locked(tmp_path / "gone" / "out.csv"):
        pass


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OutputError, match="can't be locked: File too large"), locked(tmp_path / "out.csv"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_run_may_wait_for_the_one_that_holds_the_output(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    held = locked(path)
    held.__enter__()
    started = time.monotonic()
    with pytest.raises(OutputBusyError, match="--wait SECONDS"), locked(path, wait=0.3):
        pass
    assert time.monotonic() - started >= 0.3
    threading.Timer(0.3, lambda: held.__exit__(None, None, None)).start()
    with locked(path, wait=10):
        assert time.monotonic() - started < 5


def test_a_hard_link_is_the_same_output(tmp_path: Path) -> None:
    path, other = tmp_path / "out.csv", tmp_path / "other.csv"
    path.touch()
    other.hardlink_to(path)
    with locked(path), pytest.raises(OutputBusyError, match="held by another run"), locked(other):
        pass
    with locked(other):
        pass
    assert sorted(os.listdir(tmp_path)) == ["other.csv", "out.csv"]
