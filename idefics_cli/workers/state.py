"""What the supervisor knows of jobs that are not done, and of workers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from idefics_cli.records import Document, Job, Row
from idefics_cli.workers.messages import Usage


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


@dataclass(slots=True, eq=False)
class PendingJob:
    """A job that is not done."""

    number: int
    job: Job
    worker: int | None = None
    """Who holds it."""
    rows: deque[Row] = field(default_factory=deque)
    """Rows that are not passed on yet."""
    delivered: set[str] = field(default_factory=set)
    """Keys of the rows that have come."""
    verdicts: dict[str, bool] = field(default_factory=dict)
    """Whether rows are answered already, by key, as far as it was asked."""
    is_done: bool = False
    is_revoked: bool = False
    """Whether a verdict was taken back since it was assigned: it is to be done again."""


@dataclass(slots=True)
class WorkerState:
    """What is known of a worker."""

    name: str
    held: dict[int, PendingJob] = field(default_factory=dict)
    """By number, in the order in which they were assigned."""
    is_open: bool = False
    """Whether it takes jobs."""
    is_given_up: bool = False
    """Whether it is not started again."""
    has_joined: bool = False
    """Whether it took jobs, at any of its starts."""
    is_loaded: bool = False
    """Whether its weights are loaded."""
    has_loaded: bool = False
    """Whether they were, at any of its starts."""
    failed_starts: int = 0
    """Starts in a row after which it was lost before its weights were loaded."""
    losses: int = 0
    alone_with: Document | None = None
    """The suspect that it holds, and nothing else."""
    rows: int = 0
    usage: Usage = field(default_factory=Usage)
    """Since it was last started."""
    earlier: list[Usage] = field(default_factory=list)
    """Of its earlier starts."""

    @property
    def total(self) -> Usage:
        """Over all its starts."""
        usages = [*self.earlier, self.usage]
        return Usage(*(sum(getattr(usage, name) for usage in usages) for name in Usage.__dataclass_fields__))

    @property
    def share(self) -> WorkerShare:
        """What it did so far."""
        total = self.total
        return WorkerShare(self.name, self.rows, total.pages, total.loaded_s, total.idle_s, self.losses)
