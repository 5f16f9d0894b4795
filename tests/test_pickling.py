from __future__ import annotations

import copy
import pickle

from idefics_cli.errors import Failure, FailureKind
from idefics_cli.records import Document, DocumentPart, Job, Question, Turn
from tests.output_rows import row


def test_records_come_back_as_they_were() -> None:
    turns = (Turn("user", ("what?", DocumentPart("a.pdf", "1-3"))),)
    failure = Failure(FailureKind.BAD_QUESTION, "nothing")
    question = Question("what?", "q:1", id=7, extra={"mine": [1]}, turns=turns, failure=failure, password="secret")
    job = Job(question, Document("a.pdf", data=b"bytes"), (Document("a.pdf"), Document("b.pdf", "/b.pdf")))
    for record in (job, row(question="what?", extra={"mine": {"x": None}})):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(record, protocol)) == record
        assert copy.copy(record) == copy.deepcopy(record) == record
