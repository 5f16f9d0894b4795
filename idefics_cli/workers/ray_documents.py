"""How documents reach a worker of another machine: by a path that it sees too, or as bytes from the driver."""

from __future__ import annotations

import dataclasses
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from idefics_cli.records import Document, Job
from idefics_cli.workers.messages import Assign, GoOn, Report, ToWorker, Unseen, Usage, Work

_LARGEST = 1_000_000_000  # bytes of a document that are sent
_LOOKS, _SECONDS_BETWEEN = 6, 1.0  # at a file that is not seen: a network's file system knows of new ones late


class OutgoingDocuments:
    """Makes messages fit for one worker of another machine; kept by the driver."""

    def __init__(self, *, as_bytes: bool) -> None:
        self._as_bytes = as_bytes
        self._last: tuple[str, bool] = ("", False)

    def prepared(self, message: ToWorker) -> ToWorker:
        """Return a message whose documents have absolute paths, or their bytes.

        Questions about a document follow one another: its bytes are sent with the first of them, and those after it
        name it by path alone.
        """
        if not isinstance(message, Assign):
            return message
        return Assign(tuple(work._replace(job=_mapped(work.job, self._document)) for work in message.works))

    def _document(self, document: Document) -> Document:
        if document.path is None:
            return document
        path = os.path.abspath(document.path)  # noqa: PTH100 - as the user named it, symbolic links included
        if not self._as_bytes or self._last == (path, True):
            return dataclasses.replace(document, path=path)
        data = _read(path)
        self._last = path, data is not None
        return dataclasses.replace(document, path=path, data=data)


class IncomingDocuments:
    """Receives a worker's messages, and looks whether it sees the documents; the worker's side."""

    def __init__(
        self,
        messages: queue.SimpleQueue[ToWorker],
        send: Callable[[Report], None],
        *,
        seconds: float = _SECONDS_BETWEEN,
    ) -> None:
        """Take where messages come from, who is told of documents that are not seen, and the time between two looks."""
        self._seconds = seconds
        self._messages, self._send = messages, send
        self._held: deque[ToWorker] = deque()
        self._last: Document | None = None
        self._seen = ""

    def receive(self) -> ToWorker:
        """Wait for the next message; documents whose bytes came have them, and no path."""
        message = self._held.popleft() if self._held else self._messages.get()
        if not isinstance(message, Assign):
            return message
        works = []
        for work in message.works:
            job = _mapped(work.job, self._with_bytes)
            for path in _paths(job):
                self._look(path)
            works.append(Work(work.number, job, work.delivered, work.is_checked))
        return Assign(tuple(works))

    def _with_bytes(self, document: Document) -> Document:
        if document.path is None:
            return document
        if document.data is not None:
            self._last = document
        elif self._last is None or self._last.path != document.path:
            return document
        return dataclasses.replace(document, path=None, data=self._last.data)

    def _look(self, path: str) -> None:
        """Ask the driver about a file that is not here, and wait until it says that it is nowhere."""
        if path == self._seen:
            return
        for _ in range(_LOOKS):
            if os.access(path, os.R_OK):
                self._seen = path
                return
            time.sleep(self._seconds)
        self._send(Report((Unseen(path),), Usage()))
        while not isinstance(message := self._messages.get(), GoOn):
            self._held.append(message)


def _mapped(job: Job, change: Callable[[Document], Document]) -> Job:
    if job.document is None:
        return job
    if not job.documents:
        return dataclasses.replace(job, document=change(job.document))
    documents = tuple(change(document) for document in job.documents)
    return dataclasses.replace(job, document=documents[0], documents=documents)


def _paths(job: Job) -> Iterator[str]:
    for document in job.documents or filter(None, [job.document]):
        if document.path is not None:
            yield document.path


def _read(path: str) -> bytes | None:
    """Return a file's bytes; None where they can't be read here, so that its rows say why, or are too many."""
    try:
        return Path(path).read_bytes() if Path(path).stat().st_size <= _LARGEST else None
    except OSError:
        return None
