"""Processes that a parent starts, talks to over a connection, and ends; they end with it, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from typing import Any

from idefics_cli.interpreter import start_interpreter

SECONDS_TO_STOP = 5.0
_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """A fresh interpreter, as its parent sees it."""

    def __init__(
        self, main: Callable[..., None], environment: Mapping[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        """Start it.

        Args:
            main: a function of a module that takes two numbers for `connect_to_parent`.
            environment: set before anything is imported there.
            descriptors: stay open there, under their numbers, beside the connection's.

        Raises:
            OSError: no room for another process.

        """
        self.connection, there = Pipe()
        self._started: Future[subprocess.Popen[bytes]] = Future()
        with there:
            arguments = (main, (there.fileno(), os.getpid()), [there.fileno(), *descriptors], environment)
            if threading.current_thread() is threading.main_thread():
                self._start(*arguments)
            else:  # the system takes the thread that starts a process for its parent: it is to live as long
                threading.Thread(target=self._start_and_stay, args=arguments, name="parent of", daemon=True).start()
            self._process = self._started.result()
        self.pid = self._process.pid
        self._closing = threading.Lock()  # no other file has the descriptor's number while it is used

    def _start(self, *arguments: Any) -> None:
        try:
            self._started.set_result(start_interpreter(*arguments))
        except BaseException as error:
            self._started.set_exception(error)

    def _start_and_stay(self, *arguments: Any) -> None:
        self._start(*arguments)
        if self._started.exception() is None:
            self._started.result().wait()

    def finish(self) -> None:
        """Send nothing any more: who reads there finds the end. Never blocks, and ends a `send` that does."""
        with (
            self._closing,
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self.connection.fileno())) as stream,
        ):
            stream.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill the process and what it started; returns at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, seconds: float = 0.0) -> str:
        """Wait so long for the process to end, kill it then, and say how it ended."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                code = self._process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:  # it waits in the system, for a device that hangs
                return "killed, and not gone yet"
        finally:
            with self._closing:
                self.connection.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def connect_to_parent(descriptor: int, parent: int) -> Connection:
    """Return the connection to the parent, in the child; from now on the child ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # also where this process is stopped
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_end_with_parent, args=(descriptor,), name="parent", daemon=True).start()
    return Connection(descriptor)


def _end_with_parent(descriptor: int) -> None:
    """End this process, whatever it is doing, when the other end of the connection is gone."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hanging up is reported unasked
    poll.poll()
    os.killpg(0, signal.SIGKILL)
