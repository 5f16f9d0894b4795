"""Workers that are processes: started, reached, ended, and gone with their parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from idefics_cli.records import Document, Job, Question
from idefics_cli.workers.children import ChildPool
from idefics_cli.workers.messages import Assign, Event, Joined, Lost, Report, RowDone, Stop, Work, WorkerSpec
from tests.killed_parents import left_by_killed
from tests.test_gpus import workers_of
from tests.worker_engines import open_fake, settings


@pytest.fixture
def pool() -> Iterator[ChildPool]:
    spec = WorkerSpec(settings(None, 2), open_fake)
    pool = ChildPool([(spec, {"IDEFICS_CLI_TEST": str(number)}) for number in range(2)])
    yield pool
    pool.close(is_done=False)
    assert workers_of(psutil.Process()) == []


def events(pool: ChildPool, until: Callable[[int, Event | Lost], bool]) -> list[tuple[int, Event | Lost]]:
    found: list[tuple[int, Event | Lost]] = []
    while not any(until(*one) for one in found):
        reports = pool.events(60)
        assert reports, "nothing is reported"
        for index, report in reports:
            assert not isinstance(report, Joined)
            found += [(index, report)] if isinstance(report, Lost) else [(index, event) for event in report.events]
    return found


def row_of(path: Path, index: int, pool: ChildPool) -> RowDone:
    job = Job(Question(f"q{index}", "q:1"), Document(path.name, str(path)))
    pool.send(index, Assign((Work(7, job),)))
    found = events(pool, lambda at, event: at == index and isinstance(event, RowDone))
    return next(event for at, event in found if at == index and isinstance(event, RowDone))


def environments() -> list[str]:
    return sorted(child.environ()["IDEFICS_CLI_TEST"] for child in workers_of(psutil.Process()))


def test_each_answers_with_its_own_environment_and_leads_a_session(
    pool: ChildPool, grey_png: Callable[..., Path]
) -> None:
    path = grey_png("a.png", 50, size=(60, 80))
    assert all(pool.start(index) for index in range(2))
    assert environments() == ["0", "1"]
    for index in range(2):
        done = row_of(path, index, pool)
        assert (done.number, done.row.question) == (7, f"q{index}")
    import os

    assert all(os.getsid(child.pid) == child.pid for child in workers_of(psutil.Process()))


def test_one_that_is_killed_is_lost_once_and_can_be_started_again(
    pool: ChildPool, grey_png: Callable[..., Path]
) -> None:
    pool.start(0)
    (process,) = workers_of(psutil.Process())
    process.kill()
    found = events(pool, lambda _, event: isinstance(event, Lost))
    assert found[-1] == (0, Lost("killed by SIGKILL"))
    pool.send(0, Stop())  # to one that has gone
    pool.start(0)
    assert row_of(grey_png("a.png", 50, size=(60, 80)), 0, pool).row.status == "ok"


def test_one_that_is_ended_says_how_and_reports_no_more(pool: ChildPool) -> None:
    pool.start(0)
    assert pool.end(0) == "killed by SIGKILL"
    assert pool.events(0.1) == []


def test_they_may_end_by_themselves_when_the_run_is_done(pool: ChildPool) -> None:
    pool.start(0)
    events(pool, lambda *_: True)  # it is up
    (process,) = workers_of(psutil.Process())
    pool.send(0, Stop())
    pool.close(is_done=True)
    assert not process.is_running()


def test_waiting_ends_when_it_is_woken_or_time_is_up(pool: ChildPool) -> None:
    pool.wake()
    assert pool.events(None) == []
    assert pool.events(0.01) == []


def test_they_end_with_a_parent_that_is_killed() -> None:
    script = (
        "import sys\n"
        "from idefics_cli.workers.children import ChildPool\n"
        "from idefics_cli.workers.messages import WorkerSpec\n"
        "from tests.worker_engines import open_fake, settings\n"
        "pool = ChildPool([(WorkerSpec(settings(None, 2), open_fake), {})])\n"
        "pool.start(0)\n"
        "pool.events(60)\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    started, alive = left_by_killed(script, seconds=10)
    assert started
    assert alive == []


def test_reports_are_whole_records(pool: ChildPool) -> None:
    pool.start(0)
    ((index, report),) = pool.events(60)
    assert index == 0
    assert isinstance(report, Report)
