"""The pipeline over numbered work, and `failing`, which is it with an engine that answers nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import Across, Format, PageSettings, RunSettings, Split
from idefics_cli.documents.pool import PagePool
from idefics_cli.pipeline import Progress
from idefics_cli.records import Document, Job, Question
from idefics_cli.results.lines import RowFormatter
from idefics_cli.session import Session
from idefics_cli.workers.answering import Answering
from idefics_cli.workers.failing import fail
from idefics_cli.workers.messages import Event, JobDone, RowDone, Work
from tests.fakes import FakeEngine

SETTINGS = RunSettings(pages=PageSettings(split=Split.NEVER, across=Across.EACH, workers=1))


@pytest.fixture
def works(grey_png: Callable[..., Path], tmp_path: Path) -> list[Work]:
    """Two questions about a page, one about each of three pages, one that can't be asked."""
    pages = tmp_path / "three.tiff"
    frames = [Image.new("RGB", (60, 80), (grey, grey, grey)) for grey in (10, 20, 30)]
    frames[0].save(pages, save_all=True, append_images=frames[1:])
    png = grey_png("a.png", 50, size=(60, 80))
    jobs = [
        Job(Question("one", "q:1"), Document("a.png", str(png))),
        Job(Question("three", "q:2"), Document("three.tiff", str(pages))),
        Job(Question("two", "q:3"), Document("a.png", str(png))),
        Job(Question("four", "q:4"), None),
    ]
    return [Work(10 + number, job) for number, job in enumerate(jobs)]


def told(
    works: list[Work],
    pool: PagePool,
    is_answered: Callable[[int, str], bool] = lambda *_: False,
    formatter: RowFormatter | None = None,
) -> list[Event]:
    events: list[Event] = []
    engine = FakeEngine()
    Answering(SETTINGS, engine, pool, "print", events.append, is_answered, formatter).run(works, Progress())
    engine.close()
    return events


def rows(events: list[Event]) -> list[tuple[int, str, str]]:
    return [(event.number, event.row.question, event.row.page) for event in events if isinstance(event, RowDone)]


def test_each_job_is_done_after_its_last_row(works: list[Work], pool: PagePool) -> None:
    events = told(works, pool)
    assert sorted(rows(events)) == [
        (10, "one", "1"),
        (11, "three", "1"),
        (11, "three", "2"),
        (11, "three", "3"),
        (12, "two", "1"),
        (13, "four", ""),
    ]
    for number in range(10, 14):
        of_job = [event for event in events if isinstance(event, RowDone | JobDone) and event.number == number]
        assert of_job.index(JobDone(number)) == len(of_job) - 1


def test_rows_that_came_before_or_are_answered_are_left_out_and_the_job_is_done(
    works: list[Work], pool: PagePool
) -> None:
    keys = [event.row.key for event in told(works, pool) if isinstance(event, RowDone) and event.number == 11]
    delivered = [works[0], works[1]._replace(delivered=frozenset(keys[:1]), is_checked=True), *works[2:]]
    asked: list[tuple[int, str]] = []

    def is_answered(number: int, key: str) -> bool:
        asked.append((number, key))
        return key == keys[2]

    events = told(delivered, pool, is_answered)
    assert [row for row in rows(events) if row[0] == 11] == [(11, "three", "2")]
    assert asked == [(11, keys[1]), (11, keys[2])], "only of checked work, and not of what was delivered"
    all_keys = told([works[1]._replace(delivered=frozenset(keys))], pool)
    assert all_keys == [JobDone(11)]


def test_rows_have_their_lines_with_a_formatter(works: list[Work], pool: PagePool) -> None:
    (event, _) = told(works[:1], pool, formatter=RowFormatter(Format.CSV, []))
    assert isinstance(event, RowDone)
    assert event.row.line == RowFormatter(Format.CSV, []).line(event.row)
    assert event.row.line.startswith(b"a.png,1,one,")


def test_failed_rows_have_the_keys_of_answers(works: list[Work], pool: PagePool) -> None:
    expected = {event.row.key for event in told(works, pool) if isinstance(event, RowDone)}
    events: list[Event] = []
    engine = FakeEngine()
    with Session(settings=SETTINGS, engine=engine) as session:
        fail(works, session, events.append, lambda *_: False)
    failed = [event.row for event in events if isinstance(event, RowDone)]
    assert {row.key for row in failed} == expected
    assert {row.status for row in failed} == {"failed"}
    assert sum("three workers in a row" in row.error for row in failed) == 5
    assert engine.asked == []
