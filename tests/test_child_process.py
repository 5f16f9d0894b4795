"""Processes that are started, talked to and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from idefics_cli.child_process import ChildProcess, connect_to_parent


def count(descriptor: int, parent: int) -> None:
    """Say what the environment says, then how many messages came until there were no more."""
    connection = connect_to_parent(descriptor, parent)
    connection.send(os.environ.get("COUNTED"))
    messages = 0
    with contextlib.suppress(EOFError):
        while True:
            connection.recv_bytes()
            messages += 1
    connection.send(messages)
    os._exit(3)


def wait(descriptor: int, parent: int) -> None:
    """Read nothing, for ever."""
    connection = connect_to_parent(descriptor, parent)  # as long as it is held, it is open
    connection.send("up")
    threading.Event().wait()


def test_who_reads_there_finds_the_end_and_can_still_answer() -> None:
    child = ChildProcess(count, {"COUNTED": "sheep"})
    assert child.connection.recv() == "sheep"
    for _ in range(3):
        child.connection.send_bytes(b"x" * 100_000)
    child.finish()
    assert child.connection.recv() == 3
    with pytest.raises(OSError, match="Broken pipe"):
        child.connection.send("more")
    assert child.end(10) == "exit code 3"
    child.finish()  # nobody is there any more
    child.kill()


def test_sending_to_one_that_reads_nothing_ends_with_finish() -> None:
    child = ChildProcess(wait, {})
    assert child.connection.recv() == "up"
    ended = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            child.connection.send_bytes(b"x" * 50_000_000)
        ended.set()

    threading.Thread(target=send, daemon=True).start()
    assert not ended.wait(0.3)
    child.finish()
    assert ended.wait(10)
    began = time.monotonic()
    assert child.end(0.2) == "killed by SIGKILL"
    assert time.monotonic() - began < 5


KILLED_PARENT = """
import os, signal, threading
from tests.test_child_process import ChildProcess, wait

children = []
starting = threading.Thread(target=lambda: children.append(ChildProcess(wait, {})))
starting.start()
starting.join()  # the thread that asked for the child is gone, and the child is not
assert children[0].connection.recv() == "up"
os.kill(children[0].pid, signal.SIGSTOP)
print(children[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends a stopped process on Linux alone")
def test_a_child_that_is_stopped_ends_with_its_parent_too() -> None:
    found = subprocess.run([sys.executable, "-c", KILLED_PARENT], stdout=subprocess.PIPE, check=False)
    assert found.returncode == -signal.SIGKILL
    child = Path(f"/proc/{int(found.stdout)}")
    deadline = time.monotonic() + 20
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
