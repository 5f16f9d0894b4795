"""Workers that are processes of this machine: fresh interpreters, one for each GPU, which end with their parent."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe, wait

from idefics_cli.child_process import SECONDS_TO_STOP, ChildProcess, connect_to_parent
from idefics_cli.workers.messages import Lost, Report, ToWorker, WorkerSpec


class Child(ChildProcess):
    """A worker process, as its parent sees it."""

    def __init__(self, spec: WorkerSpec, environment: Mapping[str, str]) -> None:
        """Start it; the environment is set before anything is imported there."""
        super().__init__(main, environment)
        self.send(spec)

    def send(self, message: ToWorker | WorkerSpec) -> None:
        """Send a message; that the process has gone is seen where its reports are read."""
        with contextlib.suppress(ConnectionError, OSError):
            self.connection.send(message)


class ChildPool:
    """The worker processes of a run. One thread uses it; `wake` may be called from any."""

    def __init__(self, specs: list[tuple[WorkerSpec, Mapping[str, str]]]) -> None:
        """Take what each worker runs and its environment; none is started yet."""
        self._specs = specs
        self._children: dict[int, Child] = {}
        self._woken, self._waker = Pipe(duplex=False)

    def start(self, index: int) -> bool:
        """Start a worker, or start it again after it was lost; it takes jobs at once."""
        self._children[index] = Child(*self._specs[index])
        return True

    def send(self, index: int, message: ToWorker) -> None:
        """Send a message to a worker."""
        if index in self._children:
            self._children[index].send(message)

    def events(self, timeout: float | None) -> list[tuple[int, Report | Lost]]:
        """Wait for what workers report, or that `wake` is called."""
        by_connection = {child.connection: index for index, child in self._children.items()}
        found: list[tuple[int, Report | Lost]] = []
        for connection in wait([*by_connection, self._woken], timeout):
            assert isinstance(connection, Connection)
            if connection is self._woken:
                connection.recv_bytes()
                continue
            index = by_connection[connection]
            try:
                found.append((index, connection.recv()))
            except (EOFError, OSError):
                found.append((index, Lost(self.end(index))))
        return found

    def wake(self) -> None:
        """Let `events` return."""
        with contextlib.suppress(OSError):
            self._waker.send_bytes(b"")

    def end(self, index: int) -> str:
        """End a worker at once, and say how it ended."""
        child = self._children.pop(index)
        child.kill()
        return child.end()

    def close(self, *, is_done: bool) -> None:
        """End all workers: when the run is done, those that have been told to stop may do so by themselves."""
        deadline = time.monotonic() + (SECONDS_TO_STOP if is_done else 0.0)
        if not is_done:
            for child in self._children.values():
                child.kill()
        for child in self._children.values():
            child.end(max(0.0, deadline - time.monotonic()) if is_done else SECONDS_TO_STOP)
        self._children.clear()


def main(descriptor: int, parent: int) -> None:
    """Be a worker until the parent says so or has gone."""
    connection = connect_to_parent(descriptor, parent)
    spec = connection.recv()
    from idefics_cli.workers.worker import serve

    serve(spec, connection.recv, connection.send)
    os._exit(0)  # threads that wait for the parent are not waited for
