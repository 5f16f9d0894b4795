from __future__ import annotations

import pickle

import numpy as np

from idefics_cli.records import COLUMNS, PreparedPage, Question, Request


def test_columns_are_those_of_the_output() -> None:
    assert COLUMNS[:5] == ("document", "page", "question", "answer", "confidence")
    assert COLUMNS[-3:] == ("model", "settings", "key")
    assert len(COLUMNS) == 25
    assert "extra" not in COLUMNS


def test_records_are_picklable_and_a_page_knows_whether_it_is_split() -> None:
    crop = np.zeros((4, 4, 3), np.uint8)
    page = PreparedPage((crop,) * 5, "pdfium", 1.0, 2.0)
    request = pickle.loads(pickle.dumps(Request("q", (page,), ("0",))))
    assert request.pages[0].split
    assert not PreparedPage((crop,), "pdfium", 1.0, 2.0).split
    assert pickle.loads(pickle.dumps(Question("q", "f:1", extra={"a": 1}))).extra == {"a": 1}
