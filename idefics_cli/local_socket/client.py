"""Answers questions through a server of this user's that has the model loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from idefics_cli.config import RunSettings
from idefics_cli.local_socket.folder import connect, sockets
from idefics_cli.local_socket.handshake import (
    Accepted,
    CountPages,
    Hello,
    Refused,
    Source,
    greet,
    received,
    travelling,
)
from idefics_cli.progress import Progress
from idefics_cli.records import Document, Job, Row
from idefics_cli.workers.messages import Assign, Ended, JobDone, Report, RowDone, Stop, Usage, Work

_COUNT_SECONDS = 30.0


class ServerLostError(Exception):
    """The server has gone, or can't go on; says why."""


@dataclass(slots=True)
class OpenJob:
    """A job that a server has and is not done with."""

    job: Job
    delivered: Counter[str] = field(default_factory=Counter)
    """Keys of its rows that have come."""


class ServerConnection:
    """A server that answers as this process would. One thread uses it."""

    def __init__(self, path: Path, connection: Connection, accepted: Accepted, settings: RunSettings) -> None:
        """See `find_server`."""
        self.path, self.settings, self._connection = path, settings, connection
        self.notes: tuple[str, ...] = accepted.notes
        self.engine_settings: Mapping[str, str] = accepted.settings
        self.page_processes = accepted.page_processes
        self.open_jobs: dict[int, OpenJob] = {}
        """Jobs that it has, by number: what is left to do when it is lost."""
        self._window, self._count, self._usage = accepted.window, 0, Usage()

    def rows(self, jobs: Iterator[Job], progress: Progress) -> Generator[Row, None, None]:
        """Yield the rows of jobs, in their order.

        Raises:
            ServerLostError: with `open_jobs` undone, and the rest of `jobs`.

        """
        while True:
            works = []
            while len(self.open_jobs) < self._window and (job := next(jobs, None)) is not None:
                self.open_jobs[self._count] = OpenJob(job)
                works.append(Work(self._count, with_absolute_paths(job)))
                self._count += 1
            if works:
                self._send(Assign(tuple(works)))
            if not self.open_jobs:
                return
            report = self._report()
            for event in report.events:
                if isinstance(event, RowDone):
                    self.open_jobs[event.number].delivered[event.row.key] += 1
                    progress.rows += 1
                    progress.failed += event.row.status == "failed"
                    yield event.row
                elif isinstance(event, JobDone):
                    del self.open_jobs[event.number]
                elif isinstance(event, Ended):
                    raise ServerLostError(event.words.strip().splitlines()[-1])
            progress.pages += report.usage.pages - self._usage.pages
            progress.split_pages += report.usage.split_pages - self._usage.split_pages
            self._usage = report.usage

    def page_count(self, path: str) -> int:
        """Return how many pages a file has; 1 where that can't be known."""
        with contextlib.suppress(OSError, EOFError), _greeted(self.path) as connection:
            connection.send(CountPages(os.path.abspath(path), self.settings.pages))  # noqa: PTH100
            count = received(connection, _COUNT_SECONDS)
            return count if isinstance(count, int) else 1
        return 1

    def close(self) -> None:
        """Leave the server."""
        with contextlib.suppress(OSError):
            self._connection.send(Stop())
        self._connection.close()

    def _send(self, message: Assign) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise ServerLostError("it has gone") from error

    def _report(self) -> Report:
        try:
            report = self._connection.recv()
        except (OSError, EOFError) as error:
            raise ServerLostError("it has gone") from error
        except Exception as error:  # what another version's objects may raise
            raise ServerLostError(f"it can't be understood: {error}") from error
        if not isinstance(report, Report):
            raise ServerLostError("it can't be understood")
        return report


def find_server(
    settings: RunSettings, say: Callable[[str], None], paths: Iterable[Path] | None = None
) -> ServerConnection | None:
    """Return a connection to a server that answers as this process would with these settings, if there is one.

    Args:
        settings: of the run.
        say: told which server is used, or why one is not.
        paths: of the sockets that are tried; None tries all of this user's.

    """
    opened = open_connection(settings, say, paths)
    return None if opened is None else ServerConnection(*opened, settings)


def open_connection(
    settings: RunSettings, say: Callable[[str], None], paths: Iterable[Path] | None = None
) -> tuple[Path, Connection, Accepted] | None:
    """Connect to a server; see `find_server`."""
    for path in sockets() if paths is None else paths:
        try:
            opened = _opened(path, settings)
        except (OSError, EOFError):
            say(f"the server at {path} does not answer")
        except Exception as error:  # what another version's objects may raise
            say(f"the server at {path} can't be understood: {error}")
        else:
            if isinstance(opened, str):
                say(f"the server at {path} is not used: {opened}")
            elif opened is not None:
                say(f"answered through the server at {path}")
                return path, *opened
    return None


def _opened(path: Path, settings: RunSettings) -> tuple[Connection, Accepted] | str | None:
    """Connect to a server and say what is wanted; returns why it refuses, or None where there is none.

    Raises:
        OSError: it has gone, or does not answer.
        EOFError: likewise.

    """
    connection = connect(path)
    if connection is None:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        if not greet(connection):
            return "it is another version of idefics-cli, or another installation, or its files have changed"
        connection.send(Hello(travelling(settings), Source.of(settings.model)))
        answer = received(connection)
        if isinstance(answer, Refused):
            return answer.why
        if not isinstance(answer, Accepted):
            raise EOFError
        stack.pop_all()
        return connection, answer


@contextlib.contextmanager
def _greeted(path: Path) -> Iterator[Connection]:
    connection = connect(path)
    if connection is None:
        raise EOFError
    with contextlib.closing(connection):
        if not greet(connection):
            raise EOFError
        yield connection


def with_absolute_paths(job: Job) -> Job:
    """Return a job whose files another process finds, whatever folder it stands in."""
    document = None if job.document is None else _absolute(job.document)
    return dataclasses.replace(job, document=document, documents=tuple(map(_absolute, job.documents)))


def _absolute(document: Document) -> Document:
    if document.path is None:
        return document
    return dataclasses.replace(document, path=os.path.abspath(document.path))  # noqa: PTH100
