from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from idefics_cli.errors import InputError
from idefics_cli.records import Job, Question
from idefics_cli.workers.feed import JobFeed


def job(number: int) -> Job:
    return Job(Question(f"q{number}", f"q:{number}"), None)


def wait_for_news(feed: JobFeed) -> None:
    deadline = time.monotonic() + 10
    while not feed.has_news:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_jobs_come_in_order_and_the_reader_is_woken_only_when_it_waits() -> None:
    woken, go = threading.Event(), threading.Event()

    def jobs() -> Iterator[Job]:
        yield job(0)
        go.wait(10)
        yield job(1)

    feed = JobFeed(jobs(), 4, woken.set)
    wait_for_news(feed)
    assert not woken.is_set()
    assert feed.take() == job(0)
    feed.is_awaited.set()
    assert feed.take() is None
    assert not feed.is_exhausted
    go.set()
    assert woken.wait(10)
    wait_for_news(feed)
    assert feed.take() == job(1)
    wait_for_news(feed)
    assert feed.is_exhausted
    feed.check()


def test_so_many_jobs_are_read_ahead_and_none_after_it_is_closed() -> None:
    read: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(1000):
            read.append(number)
            yield job(number)

    feed = JobFeed(jobs(), 3, lambda: None)
    time.sleep(0.1)
    assert len(read) == 4  # three, and one in hand
    feed.close()
    time.sleep(0.1)
    assert len(read) <= 5


def test_what_reading_meets_is_raised_once_the_jobs_before_it_are_taken() -> None:
    def jobs() -> Iterator[Job]:
        yield job(0)
        raise InputError("q.csv: can't be read on")

    feed = JobFeed(jobs(), 3, lambda: None)
    wait_for_news(feed)
    assert feed.take() == job(0)
    deadline = time.monotonic() + 10
    while not feed.is_exhausted:
        assert time.monotonic() < deadline
    with pytest.raises(InputError):
        feed.check()
