"""Workers that are started, lost, hung and given up, with a pool that only notes what it is told."""

from __future__ import annotations

import dataclasses

import pytest

from idefics_cli.config import Gpus, RunSettings, WorkerSettings
from idefics_cli.errors import ModelError
from idefics_cli.workers.lifecycle import Lifecycle
from idefics_cli.workers.messages import Joined, Lost, Report, ToWorker
from idefics_cli.workers.supervisor import Supervisor


class NotingPool:
    """Starts nothing; workers from `late` on join later."""

    def __init__(self, late: int = 100) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self._late = late

    def start(self, index: int) -> bool:
        self.started.append(index)
        return index < self._late

    def send(self, index: int, message: ToWorker) -> None: ...

    def events(self, timeout: float | None) -> list[tuple[int, Report | Joined | Lost]]:
        return []

    def wake(self) -> None: ...

    def end(self, index: int) -> str:
        self.ended.append(index)
        return "ended"

    def close(self, *, is_done: bool) -> None: ...


@dataclasses.dataclass
class Made:
    supervisor: Supervisor
    pool: NotingPool
    notes: list[str]
    lifecycle: Lifecycle


def made(workers: int = 2, late: int = 100) -> Made:
    supervisor = Supervisor([f"w{number}" for number in range(workers)], window=4)
    pool, notes = NotingPool(late), list[str]()
    settings = RunSettings(workers=WorkerSettings(Gpus(workers), hang_timeout=50.0))
    lifecycle = Lifecycle(supervisor, pool, settings, notes.append)
    for index in range(workers):
        lifecycle.start(index)
    return Made(supervisor, pool, notes, lifecycle)


def test_a_worker_that_joins_later_takes_no_jobs_before() -> None:
    one = made(late=1)
    assert [worker.is_open for worker in one.supervisor.workers] == [True, False]
    one.lifecycle.open(1, "there")
    assert (one.supervisor.workers[1].is_open, one.supervisor.workers[1].name) == (True, "there")


def test_a_worker_whose_engine_stalls_too_long_is_ended_and_started_again() -> None:
    one = made()
    one.lifecycle.heard(1, 49.0)
    assert one.pool.ended == []
    one.supervisor.workers[1].is_loaded = True
    one.lifecycle.heard(1, 51.0)
    assert (one.pool.ended, one.pool.started) == ([1], [0, 1, 1])
    assert one.supervisor.workers[1].losses == 1
    assert "w1: lost (hung: its engine has done no step for 51 s)" in one.notes[0]


def test_one_that_can_never_load_is_given_up_and_the_last_ends_the_run() -> None:
    one = made()
    for _ in range(3):
        one.lifecycle.lose(0, "exit code 1")
    assert "w0: lost (exit code 1); given up: it could not load" in one.notes[-1]
    assert one.pool.started == [0, 1, 0, 0]
    one.lifecycle.lose(1, "exit code 1")
    one.lifecycle.lose(1, "exit code 1")
    with pytest.raises(ModelError, match="no worker is left: none could load the model 3 times in a row"):
        one.lifecycle.lose(1, "exit code 1")


def test_machines_that_are_lost_while_loading_are_no_failed_starts() -> None:
    one = made(workers=1)
    for _ in range(10):
        one.lifecycle.lose(0, "its node has died", is_blameless=True)
    assert one.supervisor.workers[0].failed_starts == 0
    assert len(one.pool.started) == 11
