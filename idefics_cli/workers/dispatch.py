"""Joins the supervisor with workers, whatever they are: jobs go out, rows come back, lost workers are started again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from idefics_cli import errors
from idefics_cli.errors import IdeficsCliError, ModelError
from idefics_cli.pipeline import Progress
from idefics_cli.records import Job, Row
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.session import Session
from idefics_cli.workers.failing import fail
from idefics_cli.workers.feed import JobFeed
from idefics_cli.workers.messages import (
    Asked,
    Assign,
    Event,
    JobDone,
    Loaded,
    Lost,
    Opened,
    Report,
    RowDone,
    Stop,
    ToWorker,
    Verdict,
    Work,
)
from idefics_cli.workers.state import PendingJob
from idefics_cli.workers.supervisor import Supervisor

_MOST_FAILED_STARTS = 3
_OWN_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, IdeficsCliError)
}


class WorkerPool(Protocol):
    """Workers by index, however they are started and reached."""

    def start(self, index: int) -> None:
        """Start a worker, or start it again after it was lost."""

    def send(self, index: int, message: ToWorker) -> None:
        """Send a message to a worker; one that is lost is reported by `events`."""

    def events(self, timeout: float | None) -> list[tuple[int, Report | Lost]]:
        """Wait for what workers report, or that `wake` is called; after `Lost` the worker is ended."""

    def wake(self) -> None:
        """Let `events` return; from any thread."""

    def end(self, index: int) -> str:
        """End a worker at once, and say how it ended."""

    def close(self, *, is_done: bool) -> None:
        """End all workers; those that were told to stop may do so by themselves when the run is done."""


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What a worker did of a run."""

    name: str
    rows: int
    pages: int
    seconds: float
    """Since its weights were loaded."""
    idle_s: float
    """Of these, those without anything to answer."""
    losses: int
    """How often it was lost."""


class Dispatcher:
    """Answers the jobs of a run with several workers."""

    def __init__(
        self,
        session: Session,
        pool: WorkerPool,
        names: list[str],
        *,
        take_answered: Callable[[str], bool] | None = None,
        progress: Progress | None = None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take what is to be done with.

        Args:
            session: what each worker has too; its weights are not loaded here.
            pool: the workers.
            names: of the workers.
            take_answered: see `Supervisor`.
            progress: kept up to date.
            on_note: told what happens to workers.

        """
        self._session, self._pool, self._on_note = session, pool, on_note
        self._progress = progress if progress is not None else Progress()
        self._window = session.engine.info.capacity + 4 * session.pool.workers
        self._supervisor = Supervisor(
            names,
            window=self._window,
            take_answered=take_answered,
            is_ordered=not session.settings.workers.unordered,
        )

    def shares(self) -> list[WorkerShare]:
        """Return what each worker did."""
        found = []
        for worker in self._supervisor.workers:
            total = worker.total
            share = WorkerShare(worker.name, worker.rows, total.pages, total.loaded_s, total.idle_s, worker.losses)
            found.append(share)
        return found

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
                self._pool.start(index)
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
            for index, report in self._pool.events(None):
                if isinstance(report, Lost):
                    self._lose(index, report.why)
                else:
                    self._take(index, report)

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
        else:
            self._pool.end(index)
            kind = _OWN_ERRORS.get(event.kind)
            if kind is not None and not (kind is ModelError and worker.has_loaded):
                raise kind(event.words)
            self._lose(index, event.words.strip().splitlines()[-1])

    def _check_settings(self, name: str, opened: Opened) -> None:
        here = self._session.setting_values
        if settings_fingerprint(opened.setting_values) != settings_fingerprint(here):
            names = here.keys() | opened.setting_values.keys()
            differ = [one for one in names if here.get(one) != opened.setting_values.get(one)]
            raise ModelError(
                f"{name}: would answer with other settings than the others ({', '.join(sorted(differ))}): use the same "
                "versions and files everywhere, and give what is chosen by the machine, such as --dtype"
            )

    def _lose(self, index: int, why: str) -> None:
        """Give what a lost worker held to others, and start it again, or give it up.

        Raises:
            ModelError: no worker is left.

        """
        worker = self._supervisor.workers[index]
        held = len(worker.held)
        self._supervisor.lose(index)
        words = f"{worker.name}: lost ({why}); "
        if worker.failed_starts < _MOST_FAILED_STARTS:
            self._on_note(f"{words}started again, and its {held:,} unanswered questions go first")
            self._pool.start(index)
            self._supervisor.open(index)
            return
        if not any(one.is_open for one in self._supervisor.workers):
            raise ModelError(
                f"{words}no worker is left: none could load the model {_MOST_FAILED_STARTS} times in a row"
            )
        self._on_note(f"{words}given up: it could not load the model {_MOST_FAILED_STARTS} times in a row")

    def _fail(self, condemned: list[PendingJob]) -> None:
        """Make failed rows of the jobs of documents that have ended three workers in a row."""
        works = [Work(pending.number, pending.job, frozenset(pending.delivered), True) for pending in condemned]
        condemned.clear()
        for document in dict.fromkeys(work.job.document for work in works):
            self._on_note(f"{document.name if document else ''}: ended three workers in a row; its questions fail")
        fail(works, self._session, lambda event: self._handle(-1, event), self._supervisor.take)
