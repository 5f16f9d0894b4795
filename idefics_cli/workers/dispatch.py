"""Joins the supervisor with workers, whatever they are: jobs go out, rows come back, lost workers are started again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence

from idefics_cli.errors import ModelError
from idefics_cli.pipeline import Progress
from idefics_cli.records import Job, Row
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.session import Session
from idefics_cli.workers.failing import fail
from idefics_cli.workers.feed import JobFeed, jobs_at_once
from idefics_cli.workers.lifecycle import Lifecycle
from idefics_cli.workers.messages import (
    Asked,
    Assign,
    Event,
    JobDone,
    Joined,
    Loaded,
    Lost,
    Opened,
    Report,
    RowDone,
    Stop,
    Unseen,
    Verdict,
    Work,
)
from idefics_cli.workers.pool import WorkerPool
from idefics_cli.workers.state import PendingJob, WorkerShare
from idefics_cli.workers.supervisor import Supervisor


class Dispatcher:
    """Answers the jobs of a run with several workers."""

    def __init__(
        self,
        session: Session,
        pool: WorkerPool,
        names: Sequence[str],
        *,
        take_answered: Callable[[str], bool] | None = None,
        progress: Progress | None = None,
        on_note: Callable[[str], None] = lambda _: None,
        on_shares: Callable[[list[WorkerShare]], None] = lambda _: None,
        shares_every: float = 30.0,
    ) -> None:
        """Take what is to be done with.

        Args:
            session: what each worker has too; its weights are not loaded here.
            pool: the workers.
            names: of the workers that are started; more may join.
            take_answered: see `Supervisor`.
            progress: kept up to date.
            on_note: told what happens to workers.
            on_shares: told from time to time what each worker did so far.
            shares_every: seconds between two times.

        """
        self._session, self._pool, self._on_note, self._on_shares = session, pool, on_note, on_shares
        self._progress = progress if progress is not None else Progress()
        self._window = jobs_at_once(session.engine.info.capacity, session.pool.workers)
        self._supervisor = Supervisor(
            list(names),
            window=self._window,
            take_answered=take_answered,
            is_ordered=not session.settings.workers.unordered,
        )
        self._lifecycle = Lifecycle(self._supervisor, pool, session.settings, on_note)
        self._shares_every, self._shares_told = shares_every, time.monotonic()

    def shares(self) -> list[WorkerShare]:
        """Return what each worker did, but for those that never took a job or were lost."""
        return [worker.share for worker in self._supervisor.workers if worker.has_joined or worker.losses]

    def rows(self, jobs: Iterable[Job]) -> Generator[Row, None, None]:
        """Yield the rows of jobs, by default in their order.

        When the run is ended from outside, or can't go on, rows that have come still leave, though rows before them
        do not.

        Raises:
            IdeficsCliError: what ended a worker before it could answer anything; or all of them were lost too often.

        """
        feed = JobFeed(jobs, self._window, self._pool.wake)
        is_done = False
        left = self._session.settings.questions.limit
        try:
            for index in range(len(self._supervisor.workers)):
                self._lifecycle.start(index)
            for row in self._finished_rows(feed):
                if left == 0:
                    break
                left = left and left - 1
                yield self._counted(row)
            else:
                feed.check()
            is_done = True
        except GeneratorExit:
            raise
        except BaseException:
            self._pool.close(is_done=False)
            for row in self._supervisor.late_rows():
                yield self._counted(row)
            raise
        finally:
            feed.close()
            if is_done:
                for index in range(len(self._supervisor.workers)):
                    self._pool.send(index, Stop())
            self._pool.close(is_done=is_done)

    def _finished_rows(self, feed: JobFeed) -> Generator[Row, None, None]:
        while True:
            yield from self._supervisor.rows()  # first, since rows that wait to be passed on hold back new jobs
            feed.is_awaited.set()
            assigned = defaultdict[int, list[Work]](list)
            for index, work in self._supervisor.assignments(feed.take):
                assigned[index].append(work)
            for index, works in assigned.items():
                self._pool.send(index, Assign(tuple(works)))
            if self._supervisor.condemned:
                self._fail(self._supervisor.condemned)
                continue
            if feed.is_exhausted and self._supervisor.is_idle:
                return
            for index, report in self._pool.events(self._lifecycle.beat):
                if isinstance(report, Lost):
                    self._lifecycle.lose(index, report.why, is_blameless=report.is_machine)
                elif isinstance(report, Joined):
                    self._lifecycle.open(index, report.name)
                else:
                    self._take(index, report)
            self._lifecycle.replace_silent()
            self._tell_shares()

    def _counted(self, row: Row) -> Row:
        self._progress.rows += 1
        self._progress.failed += row.status == "failed"
        return row

    def _take(self, index: int, report: Report) -> None:
        worker = self._supervisor.workers[index]
        self._progress.pages += report.usage.pages - worker.usage.pages
        self._progress.split_pages += report.usage.split_pages - worker.usage.split_pages
        worker.usage = report.usage
        for event in report.events:
            self._handle(index, event)
        self._progress.skipped = self._supervisor.skipped
        self._lifecycle.heard(index, report.stalled_s)

    def _handle(self, index: int, event: Event) -> None:
        worker = self._supervisor.workers[index]
        if isinstance(event, RowDone):
            self._supervisor.add_row(event.number, event.row)
        elif isinstance(event, JobDone):
            self._supervisor.finish(event.number)
        elif isinstance(event, Asked):
            self._pool.send(index, Verdict(self._supervisor.take(event.number, event.key)))
        elif isinstance(event, Loaded):
            worker.is_loaded = worker.has_loaded = True
        elif isinstance(event, Opened):
            self._check_settings(worker.name, event)
        elif isinstance(event, Unseen):
            self._lifecycle.check_seen(index, event.path)
        else:
            self._pool.end(index)
            error = event.error
            if error is not None and not (isinstance(error, ModelError) and worker.has_loaded):
                raise error
            self._lifecycle.lose(index, event.last_line)

    def _check_settings(self, name: str, opened: Opened) -> None:
        here = self._session.setting_values
        if settings_fingerprint(opened.setting_values) != settings_fingerprint(here):
            names = here.keys() | opened.setting_values.keys()
            differ = [one for one in names if here.get(one) != opened.setting_values.get(one)]
            raise ModelError(
                f"{name}: would answer with other settings than the others ({', '.join(sorted(differ))}): use the same "
                "versions and files everywhere, and give what is chosen by the machine, such as --dtype"
            )

    def _tell_shares(self) -> None:
        if time.monotonic() - self._shares_told > self._shares_every:
            self._shares_told = time.monotonic()
            self._on_shares(self.shares())

    def _fail(self, condemned: list[PendingJob]) -> None:
        """Make failed rows of the jobs of documents that have ended three workers in a row."""
        works = [Work(pending.number, pending.job, frozenset(pending.delivered), True) for pending in condemned]
        condemned.clear()
        for document in dict.fromkeys(work.job.document for work in works):
            self._on_note(f"{document.name if document else ''}: ended three workers in a row; its questions fail")
        fail(works, self._session, lambda event: self._handle(-1, event), self._supervisor.take)
