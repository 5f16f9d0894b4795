from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from idefics_cli.cli.answers import AnswerPrinter
from idefics_cli.cli.console import log, set_up_messages
from idefics_cli.config import Across, Device, MessageSettings, ModelSettings, PageSettings, RunSettings
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.local_socket.answers import Answers
from idefics_cli.records import Document, Job, Question, Row
from idefics_cli.rows import PendingRow, finished_row
from tests.conftest import SAMPLES

FAX, NOTICE = (str(SAMPLES / "documents" / name) for name in ("fax.tiff", "notice.bmp"))


def failed(question: str, document: str = NOTICE) -> Row:
    job = Job(Question(question, "question 1"), Document(document, document))
    pending = PendingRow(job, "0" * 32, (1,), failure=Failure(FailureKind.ENCRYPTED, "locked"))
    return finished_row(pending, "tiny", "none")


def answered(question: str, answer: str, document: str = NOTICE, page: str = "1") -> Row:
    return dataclasses.replace(failed(question, document), answer=answer, page=page, error="", status="ok")


@pytest.fixture(scope="module", params=[Across.BEST, Across.EACH])
def answers(request: pytest.FixtureRequest) -> Iterator[Answers]:
    settings = RunSettings(PageSettings(across=request.param, workers=1), ModelSettings("tiny", device=Device.CPU))
    with Answers(settings, lambda _: None) as opened:
        yield opened


def test_an_answer_is_named_by_what_else_could_have_been_meant(answers: Answers) -> None:
    one = AnswerPrinter(answers, is_named=False, is_together=False)
    assert one.line(answered("Who?", "Ann\nLee")) == "Ann Lee\n"
    is_each = answers.settings.pages.across is Across.EACH
    assert one.line(answered("Who?", "Ann", FAX, "2")) == ("page 2: Ann\n" if is_each else "Ann\n")
    several = AnswerPrinter(answers, is_named=True, is_together=False)
    assert several.line(answered("Who?", "Ann")) == f"{NOTICE}: Ann\n"
    assert several.line(answered("Who?", "Ann", FAX)) == f"{FAX}, page 1: Ann\n"  # of several pages
    assert several.line(failed("Who?")) == ""


def test_several_questions_stand_before_their_answers(answers: Answers) -> None:
    one = AnswerPrinter(answers, is_named=False, is_together=False, asks_several=True)
    assert one.line(answered("Who\nis it?", "Ann")) == "Who is it? Ann\n"
    assert one.line(answered("The total", "12.50")) == "The total: 12.50\n"
    assert one.line(failed("Who?")) == ""
    several = AnswerPrinter(answers, is_named=True, is_together=False, asks_several=True)
    assert several.line(answered("Who?", "Ann", FAX, "2")) == f"{FAX}, page 2: Who? Ann\n"


@pytest.mark.parametrize("asks_several", [False, True])
def test_a_failure_says_what_could_not_be_asked_of_what(
    answers: Answers, asks_several: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_messages(MessageSettings())
    monkeypatch.setattr(log, "propagate", True)
    printer = AnswerPrinter(answers, is_named=False, is_together=False, asks_several=asks_several)
    printer.messages(failed("Who?"), is_whole=False)
    assert caplog.messages == [f"{NOTICE}: {'Who? ' * asks_several}encrypted: locked"]
    caplog.clear()
    printer.messages(dataclasses.replace(answered("Who?", "Ann"), warning="cut"), is_whole=False)
    assert caplog.messages[0] == f"{NOTICE}: cut"
