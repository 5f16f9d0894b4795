"""Documents on their way to a worker of another machine."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from idefics_cli.records import Document, DocumentPart, Job, Question
from idefics_cli.workers.messages import Assign, GoOn, Report, Stop, ToWorker, Unseen, Verdict, Work
from idefics_cli.workers.ray_documents import IncomingDocuments, OutgoingDocuments


class Way:
    """From the driver to a worker."""

    def __init__(self, *, as_bytes: bool) -> None:
        self._outgoing = OutgoingDocuments(as_bytes=as_bytes)
        self.messages: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._incoming = IncomingDocuments(self.messages, self.reports.put, seconds=0.01)
        self.sent: list[ToWorker] = []

    def send(self, message: ToWorker) -> None:
        self.sent.append(self._outgoing.prepared(message))
        self.messages.put(self.sent[-1])

    def receive(self) -> ToWorker:
        return self._incoming.receive()

    def received(self) -> list[Document]:
        message = self.receive()
        assert isinstance(message, Assign)
        return [one for work in message.works for one in work.job.documents or (work.job.document,) if one is not None]


def work(number: int, *paths: str) -> Work:
    documents = tuple(Document(Path(path).name, path) for path in paths)
    question = Question("what?", "q:1", documents=tuple(DocumentPart(one.name) for one in documents[1:] and documents))
    return Work(number, Job(question, documents[0], documents if len(documents) > 1 else ()), frozenset("k"), True)


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"a")
    way = Way(as_bytes=False)
    way.send(Assign((work(3, "a.png"),)))
    message = way.receive()
    assert isinstance(message, Assign)
    (got,) = message.works
    assert got.job.document == Document("a.png", str(tmp_path / "a.png"))
    assert (got.number, got.delivered, got.is_checked) == (3, frozenset("k"), True)


def test_bytes_are_sent_once_for_questions_that_follow_one_another(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Path(path).write_bytes(path.encode())
    way = Way(as_bytes=True)
    for message in (
        Assign((work(0, paths[0]), work(1, paths[0]))),
        Assign((work(2, paths[0]), work(3, paths[1]))),
        Assign((work(4, *paths),)),
    ):
        way.send(message)
    for path in paths:
        Path(path).unlink()  # the worker sees none of them
    contents = [[document.data for document in way.received()] for _ in range(3)]
    a, b = (path.encode() for path in paths)
    assert contents == [[a, a], [a, b], [a, b]]
    sent = [one.job.document for message in way.sent[:2] if isinstance(message, Assign) for one in message.works]
    assert [one is not None and one.data is not None for one in sent] == [True, False, False, True]


def test_other_messages_documents_without_a_file_and_questions_without_a_document_pass(tmp_path: Path) -> None:
    way = Way(as_bytes=True)
    address = Document("http://a/b.pdf", url="http://a/b.pdf")
    for message in (
        Verdict(True),
        Assign((Work(0, Job(Question("q", "q:1"), address)), Work(1, Job(Question("q", "q:2"), None)))),
        Stop(),
    ):
        way.send(message)
    assert way.receive() == Verdict(True)
    assert way.received() == [address]
    assert way.receive() == Stop()


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_file_that_is_not_seen_is_asked_about_and_messages_meanwhile_wait(as_bytes: bool, tmp_path: Path) -> None:
    way = Way(as_bytes=as_bytes)
    path = str(tmp_path / "gone.png")
    way.send(Assign((work(0, path),)))
    way.send(Verdict(False))
    received: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()

    def receive_two() -> None:
        for _ in range(2):
            received.put(way.receive())

    threading.Thread(target=receive_two, daemon=True).start()
    report = way.reports.get(timeout=30)
    assert report.events == (Unseen(path),)
    assert received.empty()
    way.send(GoOn())
    message = received.get(timeout=30)
    assert isinstance(message, Assign)
    assert [one.job.document for one in message.works] == [Document("gone.png", path)]
    assert received.get(timeout=30) == Verdict(False)
