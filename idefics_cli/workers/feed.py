"""The jobs of a run, read in a thread, for a reader that must never wait for one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from idefics_cli.records import Job


def jobs_at_once(capacity: int, page_processes: int) -> int:
    """Return how many jobs keep a worker busy, given what its engine answers at once and its page processes."""
    return capacity + 4 * page_processes


class JobFeed:
    """Jobs that are read ahead; says when one comes for which the reader waits."""

    def __init__(self, jobs: Iterable[Job], depth: int, wake: Callable[[], None]) -> None:
        """Begin to read.

        Args:
            jobs: may wait for a line of a pipe.
            depth: jobs that are read ahead.
            wake: called from the thread when a job or the end comes while `is_awaited` is set.

        """
        self.is_awaited = threading.Event()
        """Set by the reader before it looks for a job for the last time and waits."""
        self._jobs, self._wake = jobs, wake
        self._read: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._is_ended = self._is_closed = False
        self._error: BaseException | None = None
        # A daemon: it may be waiting for a line of stdin that never comes.
        threading.Thread(target=self._fill, name="jobs", daemon=True).start()

    def take(self) -> Job | None:
        """Return the next job; None where there is none now."""
        try:
            job = self._read.get_nowait()
        except queue.Empty:
            return None
        self._room.release()
        return job

    @property
    def is_exhausted(self) -> bool:
        """Whether all jobs were taken, and there will be no more."""
        return self._is_ended and self._read.empty()

    @property
    def has_news(self) -> bool:
        """Whether there is a job, or no more will come."""
        return self._is_ended or not self._read.empty()

    def check(self) -> None:
        """Raise what reading the jobs met, if anything."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave the source where it stands."""
        self._is_closed = True
        self._room.release()

    def _fill(self) -> None:
        try:
            for job in self._jobs:
                self._room.acquire()
                if self._is_closed:
                    return
                self._read.put(job)
                self._tell()
        except BaseException as error:
            self._error = error
        finally:
            self._is_ended = True
            self._tell()

    def _tell(self) -> None:
        if self.is_awaited.is_set():
            self.is_awaited.clear()
            self._wake()
