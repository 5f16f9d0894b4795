"""The loop between the supervisor and workers, with workers that are a script."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.config import Gpus, PageSettings, RunSettings, Split, WorkerSettings
from idefics_cli.errors import InputError, ModelError
from idefics_cli.records import Document, Job, Question
from idefics_cli.session import Session
from idefics_cli.workers.dispatch import Dispatcher
from idefics_cli.workers.messages import (
    Assign,
    Ended,
    Event,
    GoOn,
    JobDone,
    Joined,
    Loaded,
    Lost,
    Opened,
    Report,
    RowDone,
    ToWorker,
    Unseen,
    Usage,
)
from idefics_cli.workers.state import WorkerShare
from tests.fakes import FakeEngine
from tests.output_rows import row

Reply = Callable[[int, ToWorker], list[Event] | Lost | None]


class ScriptedPool:
    """Workers whose reports to each message a function makes; None reports nothing."""

    def __init__(self, reply: Reply) -> None:
        self.started: list[int] = []
        self.closed: list[bool] = []
        self._reply, self._reports = reply, list[tuple[int, Report | Joined | Lost]]()
        self._woken = threading.Event()

    def start(self, index: int) -> bool:
        self.started.append(index)
        return True

    def send(self, index: int, message: ToWorker) -> None:
        made = self._reply(index, message)
        if made is not None:
            self._reports.append((index, made if isinstance(made, Lost) else Report(tuple(made), Usage(pages=1))))

    def events(self, timeout: float | None) -> list[tuple[int, Report | Joined | Lost]]:
        if not self._reports:
            assert self._woken.wait(10), "nothing would ever happen"
        self._woken.clear()
        reports, self._reports = self._reports, []
        return reports

    def wake(self) -> None:
        self._woken.set()

    def end(self, index: int) -> str:
        return "ended"

    def close(self, *, is_done: bool) -> None:
        self.closed.append(is_done)


@pytest.fixture
def session() -> Session:
    workers = WorkerSettings(Gpus(2))
    settings = RunSettings(pages=PageSettings(workers=1, split=Split.NEVER), workers=workers)
    return Session(settings=settings, engine=FakeEngine())


def jobs(count: int) -> list[Job]:
    return [Job(Question(f"q{n}", f"q:{n}"), Document(f"{n}.png", f"{n}.png")) for n in range(count)]


def done(message: ToWorker) -> list[Event]:
    assert isinstance(message, Assign)
    events: list[Event] = [Loaded()]
    for work in message.works:
        events += [RowDone(work.number, row(question=work.job.question.text, key=f"{work.number:032x}"))]
        events += [JobDone(work.number)]
    return events


def test_one_slow_worker_holds_the_others_back_but_never_for_good(session: Session) -> None:
    """The worker with the first job answers once the other has nothing left that it may be given."""
    slow: list[ToWorker] = []
    given = [0]

    def reply(index: int, message: ToWorker) -> list[Event] | None:
        if not isinstance(message, Assign):
            return None
        if index == 0 and not slow:
            slow.append(message)
            return None
        given[0] += len(message.works)
        if given[0] >= 8 * 8 * 2 - 8 and len(slow) == 1:  # the span is used up
            slow.append(message)
            return [*done(message), *done(slow[0])]
        return done(message)

    dispatcher = Dispatcher(session, ScriptedPool(reply), ["a", "b"])
    rows = list(dispatcher.rows(jobs(1000)))
    assert [one.question for one in rows] == [f"q{n}" for n in range(1000)]


def test_errors_of_workers_travel_with_their_words(session: Session) -> None:
    for kind, expected in (("ModelError", ModelError), ("InputError", InputError)):
        ended = Ended(kind, "what is wrong")
        pool = ScriptedPool(lambda *_, ended=ended: [ended])
        with pytest.raises(expected, match="what is wrong"):
            list(Dispatcher(session, pool, ["a"]).rows(jobs(3)))
        assert pool.closed[0] is False


def test_a_worker_with_other_settings_is_refused_with_what_differs(session: Session) -> None:
    values = dict(session.setting_values) | {"--dtype": "float16"}
    pool = ScriptedPool(lambda index, message: [Opened(values)])
    with pytest.raises(ModelError, match=r"b|a: would answer with other settings .*--dtype"):
        list(Dispatcher(session, pool, ["a", "b"]).rows(jobs(3)))


def test_a_worker_that_is_lost_while_loading_is_given_up_and_the_others_go_on(session: Session) -> None:
    notes: list[str] = []
    pool = ScriptedPool(
        lambda index, message: (
            Lost("exit code 1") if index == 0 else done(message) if isinstance(message, Assign) else None
        )
    )
    dispatcher = Dispatcher(session, pool, ["a", "b"], on_note=notes.append)
    assert len(list(dispatcher.rows(jobs(50)))) == 50
    assert pool.started.count(0) == 3
    assert [share.losses for share in dispatcher.shares()] == [3, 0]
    assert "given up" in notes[-1]


def test_an_error_in_the_questions_comes_after_the_rows_before_it(session: Session) -> None:
    def broken() -> object:
        yield from jobs(5)
        raise InputError("q.csv: can't be read on")

    pool = ScriptedPool(lambda index, message: done(message) if isinstance(message, Assign) else None)
    rows = Dispatcher(session, pool, ["a"]).rows(broken())  # type: ignore[arg-type]
    assert [next(rows).question for _ in range(5)] == [f"q{n}" for n in range(5)]
    with pytest.raises(InputError):
        next(rows)


def test_memory_is_bounded_by_the_span_not_by_the_questions(session: Session) -> None:
    read = [0]

    def counted() -> object:
        for one in jobs(3000):
            read[0] += 1
            yield one

    pool = ScriptedPool(lambda index, message: done(message) if isinstance(message, Assign) else None)
    rows = Dispatcher(session, pool, ["a", "b"]).rows(counted())  # type: ignore[arg-type]
    next(rows)
    assert read[0] < 300
    rows.close()
    assert pool.closed == [False]


def test_a_worker_that_joins_late_gets_jobs_under_its_name(session: Session) -> None:
    class LatePool(ScriptedPool):
        def start(self, index: int) -> bool:
            super().start(index)
            return index == 0

        def join(self, index: int, name: str) -> None:
            self._reports.append((index, Joined(name)))

    given: dict[int, int] = {}

    def reply(index: int, message: ToWorker) -> list[Event] | None:
        if not isinstance(message, Assign):
            return None
        if not given:
            pool.join(1, "late")
            pool.join(2, "new")
        given[index] = given.get(index, 0) + len(message.works)
        return done(message)

    pool = LatePool(reply)
    dispatcher = Dispatcher(session, pool, ["a", "b"])
    assert len(list(dispatcher.rows(jobs(200)))) == 200
    assert set(given) == {0, 1, 2}
    assert [share.name for share in dispatcher.shares()] == ["a", "late", "new"]


def test_a_machine_that_is_lost_blames_no_document_and_no_start(session: Session) -> None:
    losses = [0]

    def reply(index: int, message: ToWorker) -> list[Event] | Lost | None:
        if not isinstance(message, Assign):
            return None
        losses[0] += 1
        return Lost("its node has died", is_machine=True) if losses[0] < 9 else done(message)

    rows = list(Dispatcher(session, ScriptedPool(reply), ["a"]).rows(jobs(5)))
    assert [row.status for row in rows] == ["ok"] * 5


def test_a_node_without_the_documents_is_named_and_the_others_go_on(session: Session, tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.touch()
    notes: list[str] = []
    pool = ScriptedPool(
        lambda index, message: (
            None if not isinstance(message, Assign) else [Unseen(str(there))] if index == 0 else done(message)
        )
    )
    assert len(list(Dispatcher(session, pool, ["node a", "b"], on_note=notes.append).rows(jobs(50)))) == 50
    assert pool.started == [0, 1]
    (note,) = notes
    assert note.startswith(f"node a: does not see {there}")
    blind = ScriptedPool(lambda index, message: [Unseen(str(there))] if isinstance(message, Assign) else None)
    with pytest.raises(InputError, match="--send-documents"):
        list(Dispatcher(session, blind, ["a", "b"]).rows(jobs(50)))


def test_a_document_that_is_nowhere_is_the_workers_to_fail(session: Session, tmp_path: Path) -> None:
    waiting: list[Assign] = []

    def reply(index: int, message: ToWorker) -> list[Event] | None:
        if isinstance(message, Assign):
            waiting.append(message)
            return [Unseen(str(tmp_path / "gone.png"))]
        return done(waiting.pop()) if isinstance(message, GoOn) else None

    assert len(list(Dispatcher(session, ScriptedPool(reply), ["a"]).rows(jobs(8)))) == 8


def test_from_time_to_time_it_is_said_what_each_worker_did(session: Session) -> None:
    shares: list[list[WorkerShare]] = []
    pool = ScriptedPool(lambda index, message: done(message) if isinstance(message, Assign) else None)
    dispatcher = Dispatcher(session, pool, ["a", "b"], on_shares=shares.append, shares_every=0.0)
    assert len(list(dispatcher.rows(jobs(100)))) == 100
    rows = [sum(share.rows for share in each) for each in shares]
    assert rows == sorted(rows)
    assert rows[-1] > rows[0]
    assert {share.name for share in shares[-1]} == {"a", "b"}
