"""What processes leave behind when they are killed."""

from __future__ import annotations

import subprocess
import sys

import psutil


def left_by_killed(script: str, seconds: float) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Kill a script once it has printed `up`; returns the processes it had started, and those alive after a while."""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    started = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.communicate()
    return started, psutil.wait_procs(started, timeout=seconds)[1]
