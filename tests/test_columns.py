from __future__ import annotations

import pytest

from idefics_cli.errors import UsageError
from idefics_cli.questions.columns import ColumnNames


def test_case_and_surrounding_spaces_do_not_matter() -> None:
    names = ColumnNames()
    assert [names.ours(name) for name in ("Question", " DOCUMENT ", "Page", "note")] == [
        "question",
        "document",
        "page",
        None,
    ]


def test_a_column_given_takes_the_place_of_the_one_of_that_name() -> None:
    names = ColumnNames(["Document=File"])
    assert names.split({"FILE": "a.pdf", "document": "mine"}) == ({"document": "a.pdf"}, {"document": "mine"})
    assert names.missing(["question", "file"]) is None
    assert names.missing(["question"]) == "--column document=File: no column 'File'"


@pytest.mark.parametrize("given", [["answer=a"], ["id=a", "ID=b"], ["id= "]])
def test_a_column_that_can_not_be_given(given: list[str]) -> None:
    with pytest.raises(UsageError, match="--column "):
        ColumnNames(given)


def test_one_column_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="two columns are 'page'"):
        ColumnNames().split({"page": 1, "Page": 2})


@pytest.mark.parametrize(
    ("name", "ours"),
    [("file", "document"), ("Doc", "document"), ("documnet", "document"), ("query", "question"), ("pages", "page")],
)
def test_near_misses_are_named(name: str, ours: str) -> None:
    assert ColumnNames().notes(["note", name]) == [
        f"column {name!r} passes through; did you mean {ours}? --column {ours}={name}"
    ]


def test_a_name_is_no_near_miss_of_a_column_that_is_there() -> None:
    assert ColumnNames().notes(["document", "file", "question", "text"]) == []
    assert ColumnNames(["document=file"]).notes(["file", "path"]) == []
    assert ColumnNames(["document=file"]).notes(["path"]) == []
