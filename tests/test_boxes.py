"""The two ends of a worker's connection."""

from __future__ import annotations

import queue
import threading

from idefics_cli.records import Job, Question
from idefics_cli.workers.boxes import Inbox, Outbox
from idefics_cli.workers.messages import Assign, JobDone, Report, Stop, ToWorker, Usage, Verdict, Work


def works(*numbers: int) -> tuple[Work, ...]:
    return tuple(Work(number, Job(Question("q", f"q:{number}"), None)) for number in numbers)


def test_what_a_worker_is_told_is_sorted() -> None:
    told: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    for message in (Assign(works(0, 1)), Verdict(True), Assign(works(2)), Verdict(False), Stop()):
        told.put(message)
    inbox = Inbox(told.get)
    assert [work.number for work in inbox.works()] == [0, 1, 2]
    assert [inbox.verdicts.get(timeout=10) for _ in range(2)] == [True, False]


def test_work_ends_where_nobody_is_left_to_give_any() -> None:
    def receive() -> ToWorker:
        raise EOFError

    assert list(Inbox(receive).works()) == []


def test_events_that_come_while_one_is_sent_go_together_and_in_order() -> None:
    may_send, sent = threading.Event(), list[Report]()

    def send(report: Report) -> None:
        assert may_send.wait(10)
        sent.append(report)

    outbox = Outbox(send)
    outbox.usage = lambda: Usage(pages=7)
    for number in range(100):
        outbox.put(JobDone(number))
    may_send.set()
    outbox.close()
    assert [event for report in sent for event in report.events] == [JobDone(number) for number in range(100)]
    assert len(sent) <= 2 + 98
    assert sent[-1].usage == Usage(pages=7)


def test_flush_waits_until_all_is_sent_and_a_beat_is_a_report_of_its_own() -> None:
    sent: list[Report] = []
    outbox = Outbox(sent.append)
    outbox.stalled = lambda: 12.0
    outbox.put(JobDone(1))
    outbox.flush()
    assert [report.events for report in sent] == [(JobDone(1),)]
    assert sent[0].stalled_s == 0
    outbox.beat()
    outbox.close()
    assert (sent[-1].events, sent[-1].stalled_s) == ((), 12.0)


def test_a_driver_that_has_gone_ends_nothing() -> None:
    def send(report: Report) -> None:
        raise BrokenPipeError

    outbox = Outbox(send)
    outbox.put(JobDone(1))
    outbox.flush()
    outbox.close()
