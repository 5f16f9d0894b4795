"""A worker, told and heard through queues."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idefics_cli.engine.base import OpenEngine
from idefics_cli.records import Document, Job, Question
from idefics_cli.workers.messages import (
    Asked,
    Assign,
    Ended,
    Event,
    JobDone,
    Loaded,
    Opened,
    Report,
    RowDone,
    Stop,
    ToWorker,
    Verdict,
    Work,
    WorkerSpec,
)
from idefics_cli.workers.worker import serve
from tests.worker_engines import open_fake, open_unloadable, settings


class Driven:
    """A worker in a thread."""

    def __init__(
        self, open_engine: OpenEngine, columns: tuple[str, ...] | None = None, *, tells_engine: bool = False
    ) -> None:
        self._told: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        given = settings(None, 1, hang_timeout=0.4)
        spec = WorkerSpec(given, open_engine, columns, tells_engine)
        self._thread = threading.Thread(target=serve, args=(spec, self._told.get, self.reports.put))
        self._thread.start()

    def tell(self, *messages: ToWorker) -> None:
        for message in messages:
            self._told.put(message)

    def events(self) -> Iterator[Event]:
        """What it reports until it ends."""
        while self._thread.is_alive() or not self.reports.empty():
            try:
                yield from self.reports.get(timeout=0.1).events
            except queue.Empty:
                continue

    def end(self) -> list[Event]:
        self.tell(Stop())
        events = list(self.events())
        self._thread.join()
        return events


@pytest.fixture
def works(grey_png: Callable[..., Path]) -> tuple[Work, ...]:
    path = str(grey_png("a.png", 50, size=(60, 80)))
    return tuple(
        Work(n, Job(Question(f"q{n}", f"q:{n}"), Document("a.png", path)), is_checked=n == 1) for n in range(3)
    )


@pytest.mark.parametrize("tells_engine", [True, False])
def test_it_opens_loads_asks_and_answers(tells_engine: bool, works: tuple[Work, ...]) -> None:
    worker = Driven(open_fake, ("mine",), tells_engine=tells_engine)
    worker.tell(Assign(works))
    events: list[Event] = []
    for event in worker.events():
        events.append(event)
        if isinstance(event, Asked):
            assert event.number == 1
            worker.tell(Verdict(True), Stop())
    kinds = [type(event) for event in events]
    assert kinds[0] is Opened
    opened = events[0]
    assert isinstance(opened, Opened)
    assert opened.setting_values["--model"] == "fake 1"
    assert (opened.info and opened.info.name) == ("fake" if tells_engine else None)
    assert kinds.index(Loaded) < kinds.index(RowDone)
    rows = [event.row for event in events if isinstance(event, RowDone)]
    assert [row.question for row in rows] == ["q0", "q2"]
    assert all(row.line.startswith(b"a.png,1,q") for row in rows)
    assert sorted(event.number for event in events if isinstance(event, JobDone)) == [0, 1, 2]


def test_without_columns_rows_are_not_formatted(works: tuple[Work, ...]) -> None:
    worker = Driven(open_fake)
    worker.tell(Assign(works[:1]))
    (row,) = [event.row for event in worker.end() if isinstance(event, RowDone)]
    assert row.line == b""


def test_what_ends_it_is_its_last_event(works: tuple[Work, ...]) -> None:
    worker = Driven(open_unloadable)
    worker.tell(Assign(works[:1]))
    last = worker.end()[-1]
    assert isinstance(last, Ended)
    assert (last.kind, last.words) == ("ModelError", "no such weights, says the loader")
    assert type(last.error).__name__ == "ModelError"


def test_a_bug_ends_it_with_its_traceback() -> None:
    def broken(_: object) -> object:
        raise ZeroDivisionError("of all things")

    last = Driven(broken).end()[-1]  # type: ignore[arg-type]
    assert isinstance(last, Ended)
    assert (last.error, last.last_line) == (None, "ZeroDivisionError: of all things")
    assert "Traceback" in last.words


def test_it_shows_that_it_lives_and_for_how_long_its_engine_stalls(works: tuple[Work, ...], tmp_path: Path) -> None:
    worker = Driven(open_fake)
    first = worker.reports.get(timeout=30)
    while first.events:
        first = worker.reports.get(timeout=30)
    assert (first.events, first.stalled_s) == ((), 0.0)
    hanging = dataclasses.replace(works[0].job, question=Question(f"wait {tmp_path / 'go'}", "q:0"))
    worker.tell(Assign((works[0]._replace(job=hanging),)))
    seen = 0.0
    while seen < 0.3:
        seen = max(seen, worker.reports.get(timeout=30).stalled_s)
    (tmp_path / "go").touch()
    assert any(isinstance(event, RowDone) for event in worker.end())
