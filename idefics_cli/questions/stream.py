"""Reads questions from a pipe in a thread, so that a run answers what is there instead of waiting for more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import IO

from idefics_cli.errors import InputError
from idefics_cli.questions.read import read_stream
from idefics_cli.records import Question

_AHEAD = 256  # questions held at most: the pipe makes the producer wait


class QuestionStream:
    """Questions as they arrive."""

    def __init__(self, stream: IO[bytes], name: str = "<stdin>") -> None:
        self._queue: queue.Queue[Question | InputError | None] = queue.Queue(_AHEAD)
        self._ended = False
        # A daemon: a read that never returns must not keep the process alive.
        threading.Thread(target=self._read, args=(stream, name), daemon=True).start()

    def _read(self, stream: IO[bytes], name: str) -> None:
        try:
            for question in read_stream(stream, name):
                self._queue.put(question)
            self._queue.put(None)
        except InputError as error:
            self._queue.put(error)

    def ready(self) -> bool:
        """Whether the next question, or the end, is there without waiting."""
        return self._ended or not self._queue.empty()

    def __iter__(self) -> Iterator[Question]:
        """Yield questions until the stream ends.

        Raises:
            InputError: a CSV that is none.

        """
        while (question := self._queue.get()) is not None:
            if isinstance(question, InputError):
                raise question
            yield question
        self._ended = True
