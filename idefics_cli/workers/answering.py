"""Runs the pipeline over numbered work, and reports its rows and which jobs are done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from idefics_cli.config import RunSettings
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.base import Engine
from idefics_cli.examples import Examples
from idefics_cli.pipeline import Progress, run
from idefics_cli.records import Job, Row
from idefics_cli.results.lines import RowFormatter
from idefics_cli.workers.messages import Event, JobDone, RowDone, Work


@dataclass(slots=True)
class _OpenJob:
    """A job whose rows are on their way."""

    work: Work
    expected: int = 0
    """Rows that are not answered already, as far as they are known."""
    told: int = 0
    """Rows that were reported."""
    is_counted: bool = False
    """Whether `expected` is final."""


class Answering:
    """Runs the pipeline over work, and reports its rows and which jobs are done."""

    def __init__(
        self,
        settings: RunSettings,
        engine: Engine,
        pool: PagePool,
        fingerprint: str,
        tell: Callable[[Event], None],
        is_answered: Callable[[int, str], bool],
        formatter: RowFormatter | None = None,
    ) -> None:
        """Take where events go, and what knows whether the row of a job (by number and key) is answered already.

        With a formatter, rows have their lines.
        """
        self._settings, self._engine, self._pool, self._fingerprint = settings, engine, pool, fingerprint
        self._tell, self._is_answered, self._formatter = tell, is_answered, formatter
        self._lock = threading.Lock()
        self._waiting: deque[_OpenJob] = deque()  # jobs whose rows are not all looked up, in their order
        self._open: dict[int, _OpenJob] = {}  # by the id of the job, which `_OpenJob` keeps alive

    def run(self, works: Iterable[Work], progress: Progress, examples: Examples | None = None) -> None:
        """Answer all work; raises as `pipeline.run`, after the rows that are answered were reported."""
        rows = run(
            self._jobs(works),
            self._engine,
            self._pool,
            self._settings,
            examples=examples,
            fingerprint=self._fingerprint,
            take_answered=self._take,
            progress=progress,
            on_job=self._counted,
            on_row=self._reported,
        )
        for _ in rows:
            pass

    def _jobs(self, works: Iterable[Work]) -> Iterator[Job]:
        for work in works:
            opened = _OpenJob(work)
            with self._lock:
                self._waiting.append(opened)
                self._open[id(work.job)] = opened
            yield work.job

    def _take(self, key: str) -> bool:
        """Whether a row is not to be answered; rows are looked up job by job, from one thread."""
        opened = self._waiting[0]
        work = opened.work
        if key in work.delivered or (work.is_checked and self._is_answered(work.number, key)):
            return True
        with self._lock:
            opened.expected += 1
        return False

    def _counted(self, job: Job) -> None:  # noqa: ARG002 - jobs are counted in their order
        with self._lock:
            opened = self._waiting.popleft()
            opened.is_counted = True
            self._end_if_done(opened)

    def _reported(self, job: Job, row: Row) -> None:
        if self._formatter is not None:
            row = self._formatter.formatted(row)
        with self._lock:
            opened = self._open[id(job)]
            self._tell(RowDone(opened.work.number, row))
            opened.told += 1
            self._end_if_done(opened)

    def _end_if_done(self, opened: _OpenJob) -> None:
        if opened.is_counted and opened.told == opened.expected:
            self._tell(JobDone(opened.work.number))
            del self._open[id(opened.work.job)]
