from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from idefics_cli.errors import Failure, FailureKind
from idefics_cli.records import Answer, Document, Job, Question
from idefics_cli.rows import PageFacts, PendingRow, finished_row, is_abstention

JOB = Job(Question("q", "f:1", id="7", extra={"mine": 1}), Document("a.pdf", "a.pdf"))
PAGE = PageFacts("pdfium", 1, "blank page")


def pending(answers: dict[int, Answer], **changes: Any) -> PendingRow:
    values: dict[str, Any] = {"pages": (1, 2), "facts": {1: PAGE, 2: PAGE}, "raster_ms": 5.0, "is_submitted": True}
    row = PendingRow(JOB, "key", **(values | changes))
    row.submitted_at = 1.0
    for page, answer in answers.items():
        future: Future[Answer] = Future()
        row.expect(page, future)
        future.set_result(answer)
    return row


def test_the_most_certain_page_answers_and_all_pages_are_paid_for() -> None:
    row = finished_row(
        pending(
            {
                1: Answer("one", 0.2, -0.9, decode_ms=3.0),
                2: Answer("two", 0.9, -0.1, decode_ms=4.0, warning="cut", new_tokens=3),
            }
        ),
        "m",
        "s",
    )
    assert (row.answer, row.page, row.status, row.confidence, row.decode_ms) == ("two", "2", "ok", 0.9, 7.0)
    assert row.warning == "blank page; cut"
    assert (row.id, row.extra, row.model, row.settings, row.key) == ("7", {"mine": 1}, "m", "s", "key")
    assert (row.raster_ms, row.crops, row.split, row.new_tokens) == (5.0, 1, False, 3)


def test_answers_of_different_lengths_are_compared_by_their_mean() -> None:
    """A long answer's tokens have a smaller product though each is more certain."""
    row = finished_row(pending({1: Answer("12", 0.6, -0.26), 2: Answer("a whole address", 0.4, -0.06)}), "m", "s")
    assert (row.answer, row.confidence) == ("a whole address", 0.4)


@pytest.mark.parametrize("words", ["Not found.", "unanswerable", "", " N/A "])
def test_an_abstention_ranks_behind_every_answer(words: str) -> None:
    assert is_abstention(words)
    row = finished_row(pending({1: Answer(words, 1.0, 0.0), 2: Answer("1,234.00", 0.01, -3.0)}), "m", "s")
    assert (row.answer, row.page) == ("1,234.00", "2")
    row = finished_row(pending({1: Answer(words, 0.5, -0.5), 2: Answer("Not found", 0.9, -0.1)}), "m", "s")
    assert (row.status, row.page) == ("ok", "2")


def test_an_answer_that_only_begins_like_an_abstention_is_one() -> None:
    assert not is_abstention("not found in stock: 3")
    assert not is_abstention("none")


def test_a_page_that_failed_is_a_warning_while_another_answers() -> None:
    lost = Failure(FailureKind.RENDER_FAILED, "page 1: lost")
    row = finished_row(pending({2: Answer("two", 0.9)}, facts={2: PAGE}, page_failures=[lost]), "m", "s")
    assert row.status == "ok"
    assert "1 of 2 pages failed: render-failed: page 1: lost" in row.warning


def test_a_row_without_an_answer_says_why() -> None:
    lost = [Failure(FailureKind.RENDER_FAILED, f"page {page}") for page in (1, 2)]
    row = finished_row(pending({}, facts={}, page_failures=lost), "m", "s")
    assert (row.status, row.error, row.page) == ("failed", "render-failed: page 1", "1-2")
    assert (row.answer, row.confidence, row.latency_ms, row.split, row.crops) == ("", None, None, None, None)
    row = finished_row(pending({1: Answer(failure=lost[1]), 2: Answer(failure=lost[0])}), "m", "s")
    assert (row.status, row.error) == ("failed", "render-failed: page 2")
    bad = Failure(FailureKind.BAD_QUESTION, "nowhere")
    row = finished_row(
        PendingRow(Job(Question("q", "f:1", document="b.pdf", page="3"), None), "k", failure=bad), "m", "s"
    )
    assert (row.document, row.page, row.error) == ("b.pdf", "3", "bad-question: nowhere")


def test_pages_read_together_are_one_answer_of_all_of_them() -> None:
    facts = {1: PAGE, 2: PageFacts("poppler", 5, "")}
    row = finished_row(pending({1: Answer("both", 0.5)}, is_together=True, facts=facts), "m", "s")
    assert (row.page, row.crops, row.split, row.rasterizer) == ("1-2", 6, True, "pdfium")


def test_it_is_answered_when_every_answer_is_there() -> None:
    row = pending({1: Answer("one")}, is_submitted=False)
    assert not row.is_answered
    row.is_submitted = True
    assert row.is_answered
    second: Future[Answer] = Future()
    row.expect(2, second)
    assert not row.is_answered
    second.set_exception(RuntimeError("gone"))
    assert not row.is_answered


def test_latency_is_never_negative_though_a_future_is_read_before_its_callbacks_ran() -> None:
    row = pending({1: Answer("one")}, submitted_at=None)
    row.answered_at.clear()
    row.submitted_at = 1.0
    latency = finished_row(row, "m", "s").latency_ms
    assert latency is not None
    assert latency > 0
