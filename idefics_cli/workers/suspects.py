"""Documents that may be what ends workers: suspected after two losses, condemned after a third, by themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from idefics_cli.records import Document
from idefics_cli.workers.state import PendingJob

_LOSSES_TO_SUSPECT = 2
_LOSSES_TO_CONDEMN = 3


class Suspects:
    """The documents that lost workers held, and the jobs about them that are put aside."""

    def __init__(self) -> None:
        self.waiting: deque[PendingJob] = deque()
        """Jobs of suspected documents, each to be asked by a worker that holds nothing else."""
        self.condemned: list[PendingJob] = []
        """Jobs of documents that have ended three workers in a row, for the caller to fail."""
        self._losses: dict[Document | None, int] = {}  # of the few that a lost worker held

    def blame(self, documents: Iterable[Document | None], *, was_alone: bool) -> None:
        """Say that a worker was lost that held these documents; in company, one is only suspected."""
        most = _LOSSES_TO_CONDEMN if was_alone else _LOSSES_TO_SUSPECT
        for document in documents:
            self._losses[document] = min(self._losses.get(document, 0) + 1, most)

    def clear(self, document: Document) -> None:
        """Say that a document was answered by itself: it is not what ended the others."""
        self._losses.pop(document, None)

    def takes(self, pending: PendingJob) -> bool:
        """Put a job aside if its document is suspected or condemned; says whether it is."""
        losses = self._losses.get(pending.job.document, 0) if self._losses else 0
        if losses >= _LOSSES_TO_CONDEMN:
            self.condemned.append(pending)
        elif losses >= _LOSSES_TO_SUSPECT:
            self.waiting.append(pending)
        return losses >= _LOSSES_TO_SUSPECT

    def sorted(self, returned: Iterable[PendingJob]) -> deque[PendingJob]:
        """Look at the jobs that wait once more, and at others; returns those that nothing speaks against."""
        jobs = [*self.waiting, *returned]
        self.waiting.clear()
        return deque(pending for pending in jobs if not self.takes(pending))

    def next(self, most: int) -> list[PendingJob]:
        """Take up to so many jobs of one suspected document."""
        document = self.waiting[0].job.document
        jobs = [pending for pending in self.waiting if pending.job.document == document][:most]
        for pending in jobs:
            self.waiting.remove(pending)
        return jobs
