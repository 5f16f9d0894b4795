"""Decides which worker answers which job, and keeps the order of rows; knows nothing of processes.

Each job leaves as its rows, once, whatever happens to workers: what a lost worker held goes to the others, ahead of new
jobs. A document whose jobs a lost worker held is under suspicion. After two losses it is asked alone, by a worker that
holds nothing else; if that is lost too, it is condemned: its rows fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from idefics_cli.records import Document, Job, Row
from idefics_cli.workers.messages import Usage, Work
from idefics_cli.workers.room import Room
from idefics_cli.workers.state import PendingJob, WorkerState
from idefics_cli.workers.suspects import Suspects

SAME_DOCUMENT = 32
"""Jobs about one document that follow one another and go to the same worker, so that its pages are shared."""


class Supervisor:
    """Assigns jobs to workers and takes their rows."""

    def __init__(
        self,
        names: list[str],
        *,
        window: int,
        take_answered: Callable[[str], bool] | None = None,
        is_ordered: bool = True,
    ) -> None:
        """Begin.

        Args:
            names: of the workers, none of which gets a job before `open`.
            window: jobs that a worker holds at most: enough that its engine never waits.
            take_answered: takes one row with this key that is there already, if one is left; None: there are none.
            is_ordered: whether rows leave in the order of the jobs.

        """
        self.workers = [WorkerState(name) for name in names]
        self.skipped = 0
        """Rows that were answered already."""
        self._window, self._take_answered, self._is_ordered = window, take_answered, is_ordered
        self._count = 0
        self._pending: dict[int, PendingJob] = {}
        self._order: deque[PendingJob] = deque()
        self._takers: dict[str, list[PendingJob]] = {}  # of answered rows, by key, among the jobs of `_order`
        self._ready: deque[Row] = deque()
        self._returned: deque[PendingJob] = deque()
        self._suspects = Suspects()
        self.condemned = self._suspects.condemned
        """Jobs of documents that have ended three workers in a row, for the caller to fail."""
        self._room = Room(window)
        self._last: tuple[Document | None, int, int] = (None, -1, 0)  # document, worker and jobs in a row

    @property
    def is_idle(self) -> bool:
        """Whether every job so far is done and its rows are passed on."""
        return not self._pending and not self._ready

    def assignments(self, next_job: Callable[[], Job | None]) -> Iterator[tuple[int, Work]]:
        """Yield jobs with the workers that are to get them, until there is no room or no job.

        Args:
            next_job: the next job of the run, None where there is none now; asked only when there is room.

        """
        yield from self._assigned_suspects()
        while (worker := self._roomiest()) is not None:
            if self._returned:
                pending = self._returned.popleft()
            elif self._has_span() and (job := next_job()) is not None:
                pending = self._added(job)
            else:
                return
            if self._suspects.takes(pending):
                yield from self._assigned_suspects()
                continue
            yield self._given(pending, self._same_document(pending.job, worker))

    def take(self, number: int, key: str) -> bool:
        """Whether a row of a job is answered already; the same answer each time it is asked.

        Rows with equal keys are taken in the order of their jobs: an earlier job takes one over from a later job.
        """
        pending = self._pending[number]
        if key not in pending.verdicts:
            is_taken = self._take_answered is not None and self._take_answered(key)
            self.skipped += is_taken
            pending.verdicts[key] = is_taken or self._take_over(number, key)
            if pending.verdicts[key] and self._is_ordered:
                self._takers.setdefault(key, []).append(pending)
        return pending.verdicts[key]

    def _take_over(self, number: int, key: str) -> bool:
        """Take an answered row from the last later job that has one with this key; that job is done again."""
        takers = self._takers.get(key, [])
        last = max(takers, key=lambda pending: pending.number, default=None)
        if last is None or last.number < number:
            return False
        takers.remove(last)
        last.verdicts[key] = False
        last.is_revoked = True
        if last.is_done:
            last.is_done = False
            self._pending[last.number] = last
            last.worker = None
            self._returned.append(last)
        return True

    def add_row(self, number: int, row: Row) -> None:
        """Take a row; one that has come already is dropped."""
        pending = self._pending.get(number)
        if pending is None or row.key in pending.delivered:
            return
        pending.delivered.add(row.key)
        if pending.worker is not None:
            self.workers[pending.worker].rows += 1
        (pending.rows if self._is_ordered else self._ready).append(row)

    def finish(self, number: int) -> None:
        """Say that all rows of a job have come."""
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        pending.is_done = not pending.is_revoked
        if pending.is_revoked:
            self._pending[number] = pending
            self._returned.append(pending)
        if pending.worker is not None:
            worker = self.workers[pending.worker]
            del worker.held[number]
            if worker.alone_with is not None and not worker.held:
                self._suspects.clear(worker.alone_with)
                worker.alone_with = None
            self._note_room(pending.worker)

    def lose(self, index: int, *, is_blameless: bool = False) -> None:
        """Take back what a lost worker held; it gets nothing until `open`.

        Args:
            index: of the worker.
            is_blameless: whether neither what it held nor the model can have ended it.

        """
        worker = self.workers[index]
        was_alone = worker.alone_with is not None
        lost = list(worker.held.values())
        if worker.is_loaded and not is_blameless:
            self._suspects.blame({pending.job.document for pending in lost}, was_alone=was_alone)
        worker.failed_starts = 0 if worker.is_loaded else worker.failed_starts + (not is_blameless)
        worker.losses += 1
        worker.held.clear()
        worker.is_open = worker.is_loaded = False
        worker.alone_with = None
        worker.earlier.append(worker.usage)
        worker.usage = Usage()
        for pending in reversed(lost):
            pending.worker = None
            self._returned.appendleft(pending)
        self._returned = self._suspects.sorted(self._returned)
        self._note_room(index)

    def open(self, index: int) -> None:
        """Say that a worker takes jobs."""
        worker = self.worker(index)
        worker.is_open = worker.has_joined = True
        self._note_room(index)

    def worker(self, index: int) -> WorkerState:
        """Return what is known of a worker; one that is not known yet is a new one."""
        while index >= len(self.workers):
            self.workers.append(WorkerState(f"worker {len(self.workers) + 1}"))
        return self.workers[index]

    def rows(self) -> Iterator[Row]:
        """Yield the rows that can be passed on."""
        while self._ready:
            yield self._ready.popleft()
        while self._order:
            first = self._order[0]
            while first.rows:
                yield first.rows.popleft()
            if not first.is_done:
                return
            self._order.popleft()
            for key in [key for key, is_answered in first.verdicts.items() if is_answered]:
                self._takers[key].remove(first)
                if not self._takers[key]:
                    del self._takers[key]

    def late_rows(self) -> Iterator[Row]:
        """Yield all rows that have come, when no more will: also those behind rows that have not."""
        yield from self.rows()
        for pending in self._order:
            yield from pending.rows

    def _added(self, job: Job) -> PendingJob:
        pending = self._pending[self._count] = PendingJob(self._count, job)
        self._count += 1
        if self._is_ordered:
            self._order.append(pending)
        return pending

    def _roomiest(self) -> int | None:
        """Return the worker that holds the fewest jobs, if one has room; one is kept free where a suspect waits."""
        return self._room.roomiest_but_one() if self._suspects.waiting else self._room.roomiest()

    def _has_span(self) -> bool:
        # The jobs between the first that is not done and the last that is assigned.
        return not self._is_ordered or len(self._order) < 8 * self._window * len(self.workers)

    def _same_document(self, job: Job, roomiest: int) -> int:
        """Return the worker that has the job before, about the same document, or else the one with most room."""
        document, last, count = self._last
        if document is not None and document == job.document and count < SAME_DOCUMENT and last in self._room:
            self._last = document, last, count + 1
            return last
        self._last = job.document, roomiest, 1
        return roomiest

    def _given(self, pending: PendingJob, worker: int) -> tuple[int, Work]:
        pending.worker, pending.is_revoked = worker, False
        self.workers[worker].held[pending.number] = pending
        self._note_room(worker)
        is_checked = self._take_answered is not None
        return worker, Work(pending.number, pending.job, frozenset(pending.delivered), is_checked)

    def _assigned_suspects(self) -> Iterator[tuple[int, Work]]:
        """Give each suspect document to a worker that holds nothing."""
        while self._suspects.waiting:
            free = [index for index, worker in enumerate(self.workers) if worker.is_open and not worker.held]
            if not free:
                return
            for pending in self._suspects.next(self._window):
                yield self._given(pending, free[0])
                self.workers[free[0]].alone_with = pending.job.document
            self._note_room(free[0])

    def _note_room(self, index: int) -> None:
        worker = self.workers[index]
        self._room.put(index, len(worker.held) if worker.is_open and worker.alone_with is None else None)
