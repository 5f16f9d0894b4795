"""One page process: how it is started, asked and ended, and the loop that runs in it.

It is a fresh interpreter, since PDFium and the threads of the parent do not survive a fork, and it imports neither the
script that was started nor more of this package than its pages need. It leads a process group of its own, to which the
rasterizers that it starts belong; the group is ended with it, and with the parent, also when that is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

from idefics_cli.documents.shared_memory import map_memory, write_crops
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.interpreter import start_interpreter
from idefics_cli.records import PreparedPage

_START_SECONDS = 120.0
_LONGEST_WAIT = 1e6  # seconds; the system's poll takes 24 days at most
_MEMORY = 2_000_000_000  # bytes of a page process: an image of 250 megapixels in four bytes each, and what it becomes
_OUT_OF_MEMORY = f"it needs more memory than a page process may use ({_MEMORY / 1e9:g} GB)"
_ABORTED = (-signal.SIGABRT, -signal.SIGTRAP, -signal.SIGILL, -signal.SIGSEGV)  # how libraries end without memory
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the buffers of more count as memory


class ProcessDiedError(Exception):
    """A page process ended by itself, or was killed."""


class PageProcess:
    """A page process as its parent sees it. One thread calls it; any may kill it."""

    def __init__(self, memory: int | None, folder: str | None) -> None:
        self._lock = threading.Lock()
        self._ending: ProcessDiedError | RowFailedError | None = None
        self._connection, there = Pipe()
        with there:
            descriptors = [there.fileno(), *(() if memory is None else (memory,))]
            self._process = start_interpreter(serve, (there.fileno(), memory, folder), descriptors, _ONE_THREAD)
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked; between two calls, a process that has something to say has ended."""
        try:
            return self._ending is None and not (self._is_ready and self._connection.poll())
        except OSError:
            return False

    def call(self, timeout: float, slot: int | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns there; crops that were written to the slot come as their shapes.

        Raises:
            TimeoutError: it took longer than so many seconds; the process was killed.
            ProcessDiedError: the process ended.
            RowFailedError: what the function raised, or the process ended for want of memory.

        """
        try:
            self._wait_for_start()
            self._connection.send((function, arguments, slot))
            result = self._receive(timeout)
        except (EOFError, ConnectionError) as error:
            raise self.end() from error
        except TimeoutError:
            self.end()
            raise
        if isinstance(result, BaseException):
            raise result
        return result

    def _wait_for_start(self) -> None:
        if not self._is_ready:
            with contextlib.suppress(TimeoutError):
                self._receive(_START_SECONDS)
                self._is_ready = True
        if not self._is_ready:
            raise self.end()

    def _receive(self, timeout: float) -> Any:
        if not self._connection.poll(min(timeout, _LONGEST_WAIT)):
            raise TimeoutError
        return self._connection.recv()

    def kill(self) -> None:
        """Kill the process and what it started; returns at once."""
        with self._lock:
            if self._ending is None:  # later the number may be another process's
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> ProcessDiedError | RowFailedError:
        """Kill the process, wait for it, and return why it ended, had it ended before."""
        self.kill()
        with self._lock:
            if self._ending is None:
                self._ending = self._reap()
                self._connection.close()
            return self._ending

    def _reap(self) -> ProcessDiedError | RowFailedError:
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:  # someone else has waited for it
            return ProcessDiedError("the page's process died")
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        most = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if code in _ABORTED and most > _MEMORY / 4:
            return RowFailedError(FailureKind.TOO_LARGE, _OUT_OF_MEMORY)
        return ProcessDiedError(
            f"the page's process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        )


def serve(descriptor: int, memory: int | None, folder: str | None) -> None:
    """Answer the parent until it closes the connection."""
    warnings.simplefilter("ignore")  # what is wrong with a document stands in its row
    # A page that asks for more fails alone. What is shared with the parent does not count as data.
    limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY if limit < 0 else min(_MEMORY, limit), limit))
    watcher = threading.Thread(target=_end_with_parent, args=(descriptor, folder), daemon=True)
    watcher.start()
    import idefics_cli.documents.page  # noqa: F401 - what goes wrong with it is still said on stderr

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain of documents there
    mapped = map_memory(memory) if memory is not None else None
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            connection.send(_answer(connection.recv_bytes(), mapped))
    watcher.join()  # it tidies up before it ends this process


def _answer(request: bytes, memory: mmap.mmap | None) -> Any:
    """Return the result of what is asked, or what it raised as one of our own exceptions."""
    try:
        function, arguments, slot = pickle.loads(request)  # noqa: S301 - from the parent
        result = function(*arguments)
    except RowFailedError as error:
        return RowFailedError(error.failure.kind, error.failure.detail)  # without what it holds on to
    except MemoryError:
        return RowFailedError(FailureKind.TOO_LARGE, _OUT_OF_MEMORY)
    except Exception as error:  # a document that breaks a library in a new way has a row like any other
        return RowFailedError(FailureKind.RENDER_FAILED, f"{type(error).__name__}: {error}")
    if isinstance(result, PreparedPage):
        if slot is not None and memory is not None and write_crops(memory, slot, result.crops):
            return dataclasses.replace(result, crops=()), [crop.shape for crop in result.crops]
        return result, None
    return result


def _end_with_parent(descriptor: int, folder: str | None) -> None:
    """End this process's group, whatever it is doing, when the other end of the connection is gone."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hanging up is reported unasked
    poll.poll()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
