"""What a worker is told and what it reports; all of it picklable, in whatever way it travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli import errors
from idefics_cli.config import RunSettings
from idefics_cli.errors import IdeficsCliError
from idefics_cli.records import Job, Row

if TYPE_CHECKING:  # who only sends jobs and takes rows starts without it
    from idefics_cli.engine.base import EngineInfo, OpenEngine


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to start."""

    settings: RunSettings
    open_engine: OpenEngine
    """A function of a module, so that it can be pickled."""
    columns: tuple[str, ...] | None = None
    """The user's own of the output; its lines are formatted by the workers then, which are many."""
    tells_engine: bool = False
    """Whether it says what its engine is, for a driver that can't open the checkpoint."""


class Work(NamedTuple):
    """A job for a worker."""

    number: int
    """Of the job in the run, from 0."""
    job: Job
    delivered: frozenset[str] = frozenset()
    """Keys of its rows that came from a worker which was lost since: they are not answered again."""
    is_checked: bool = False
    """Whether the worker must ask of each row whether it is answered already."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Jobs to be answered, in this order."""

    works: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was asked with `Asked`: whether the row is answered already."""

    is_answered: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """There is no more work."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """The file of `Unseen` is not there for the driver either: its rows fail."""


ToWorker = Assign | Verdict | Stop | GoOn


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoint is open, its weights are not loaded."""

    setting_values: Mapping[str, str]
    """See `Session.setting_values`: those of the parent must be equal."""
    info: EngineInfo | None = None
    """Of the worker's engine, where it is asked to tell."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are loaded; the first request follows."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A worker on another machine has no such file; `GoOn` is waited for, or the worker's end."""

    path: str


class Asked(NamedTuple):
    """Whether the row of a job with this key is answered already; a `Verdict` is waited for."""

    number: int
    key: str


class RowDone(NamedTuple):
    """A row of a job."""

    number: int
    row: Row


class JobDone(NamedTuple):
    """All rows of a job were reported, or were answered already."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker can't go on."""

    kind: str
    """The class of our own error; empty for a bug."""
    words: str

    @property
    def error(self) -> IdeficsCliError | None:
        """Our own error that ended it; None for a bug."""
        kind = getattr(errors, self.kind, None) if self.kind else None
        is_own = isinstance(kind, type) and issubclass(kind, IdeficsCliError)
        return kind(self.words) if is_own and kind is not None else None

    @property
    def last_line(self) -> str:
        """The last line of its words: of a traceback the error."""
        return (self.words.strip().splitlines() or ["it says nothing"])[-1]


Event = Opened | Loaded | Unseen | Asked | RowDone | JobDone | Ended


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker has done since it started."""

    pages: int = 0
    split_pages: int = 0
    loaded_s: float = 0.0
    """Seconds since the weights were loaded."""
    idle_s: float = 0.0
    """Of these, those in which the engine had nothing to answer."""


@dataclass(frozen=True, slots=True)
class Report:
    """Events in their order, and what the worker has done up to them; without events, a sign of life."""

    events: tuple[Event, ...]
    usage: Usage
    stalled_s: float = 0.0
    """How long its engine has had requests and has done no step."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker that was started takes jobs from now on."""

    name: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, with whatever it was doing."""

    why: str
    is_machine: bool = False
    """Whether its whole machine is gone: nothing that the worker did has ended it."""
