"""A server of this user's as the one worker of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from idefics_cli.config import RunSettings
from idefics_cli.errors import ModelError
from idefics_cli.local_socket.client import open_connection, with_absolute_paths
from idefics_cli.workers.messages import Assign, Lost, Report, ToWorker


class ServerPool:
    """See `WorkerPool`; the server is not started or ended here."""

    def __init__(self, path: Path, connection: Connection) -> None:
        """See `server_for_run`."""
        self.path = path
        self._connection: Connection | None = connection
        self._is_first = True
        self._woken, self._waker = Pipe(duplex=False)

    def start(self, index: int) -> bool:  # noqa: ARG002 - the one worker
        """See `WorkerPool`: it takes jobs at once.

        Raises:
            ModelError: the server was lost, and with it the run.

        """
        if not self._is_first:
            raise ModelError(
                f"the server at {self.path} has gone, or is stopping; what is answered is kept: run it again with "
                "--resume, and with --no-server to use no server"
            )
        self._is_first = False
        return True

    def send(self, index: int, message: ToWorker) -> None:  # noqa: ARG002
        """See `WorkerPool`."""
        if isinstance(message, Assign):
            works = tuple(work._replace(job=with_absolute_paths(work.job)) for work in message.works)
            message = Assign(works)
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(message)

    def events(self, timeout: float | None) -> list[tuple[int, Report | Lost]]:
        """See `WorkerPool`."""
        if self._connection is None:
            return [(0, Lost("it has gone"))]
        found: list[tuple[int, Report | Lost]] = []
        for ready in wait([self._connection, self._woken], timeout):
            if ready is self._woken:
                self._woken.recv_bytes()
                continue
            try:
                found.append((0, self._connection.recv()))
            except (EOFError, OSError):
                found.append((0, Lost(self.end(0))))
        return found

    def wake(self) -> None:
        """See `WorkerPool`."""
        with contextlib.suppress(OSError):
            self._waker.send_bytes(b"")

    def end(self, index: int) -> str:  # noqa: ARG002
        """See `WorkerPool`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return "it has gone"

    def close(self, *, is_done: bool) -> None:  # noqa: ARG002
        """See `WorkerPool`: the server stays."""
        self.end(0)


def server_for_run(settings: RunSettings, say: Callable[[str], None]) -> ServerPool | None:
    """Return a server that answers as this process would with these settings, if there is one; see `find_server`."""
    # How many rows there may be is counted here, beside those that are there.
    there = dataclasses.replace(settings, questions=dataclasses.replace(settings.questions, limit=None))
    opened = open_connection(there, say)
    return None if opened is None else ServerPool(*opened[:2])
