"""Documents under suspicion, apart from workers."""

from __future__ import annotations

from idefics_cli.records import Document, Job, Question
from idefics_cli.workers.state import PendingJob
from idefics_cli.workers.suspects import Suspects

A, B = Document("a.png", "a.png"), Document("b.png", "b.png")


def pending(number: int, document: Document) -> PendingJob:
    return PendingJob(number, Job(Question("q", f"q:{number}"), document))


def test_one_loss_is_none_of_its_documents_doing_and_two_are() -> None:
    suspects = Suspects()
    suspects.blame([A, B], was_alone=False)
    assert not suspects.takes(pending(0, A))
    suspects.blame([A], was_alone=False)
    assert suspects.takes(pending(1, A))
    assert not suspects.takes(pending(2, B))
    assert [job.number for job in suspects.waiting] == [1]


def test_company_never_condemns_and_a_loss_alone_does() -> None:
    suspects = Suspects()
    for _ in range(5):
        suspects.blame([A], was_alone=False)
    assert suspects.takes(pending(0, A))
    assert suspects.condemned == []
    suspects.blame([A], was_alone=True)
    assert list(suspects.sorted([pending(1, A), pending(2, B)])) != []
    assert [job.number for job in suspects.condemned] == [0, 1]
    assert not suspects.waiting


def test_one_that_is_answered_by_itself_is_cleared() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([A], was_alone=False)
    suspects.clear(A)
    assert not suspects.takes(pending(0, A))


def test_suspects_are_asked_document_by_document() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.blame([A, B], was_alone=False)
    for number, document in enumerate([A, B, A, A]):
        assert suspects.takes(pending(number, document))
    assert [job.number for job in suspects.next(2)] == [0, 2]
    assert [job.number for job in suspects.next(2)] == [1]
    assert [job.number for job in suspects.next(2)] == [3]
