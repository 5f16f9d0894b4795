from __future__ import annotations

import pytest

from idefics_cli.errors import FailureKind, RowFailedError, UsageError
from idefics_cli.questions.pages import check_selection, select_pages, selection_of


@pytest.mark.parametrize(
    ("selection", "pages"),
    [
        (None, (1, 2, 3, 4, 5)),
        ("1-3,5,-1", (1, 2, 3, 5)),
        ("-2--1", (4, 5)),
        ("3", (3,)),
        ("2-2", (2,)),
        ("5,1", (5, 1)),
    ],
)
def test_selections(selection: str | None, pages: tuple[int, ...]) -> None:
    assert select_pages(selection, 5) == pages


@pytest.mark.parametrize("selection", ["", "0", "a", "1-", "1,,2", "1.5", "1-0", "\u0663", "1" * 5000])
def test_what_is_no_selection_is_a_usage_error(selection: str) -> None:
    with pytest.raises(UsageError, match="as in 1-3,7,-1") as caught:
        check_selection(selection)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("selection", ["6", "-6", "4-9", "3-1", "1-999999999"])
def test_pages_that_are_not_there(selection: str) -> None:
    with pytest.raises(RowFailedError) as caught:
        select_pages(selection, 5)
    assert caught.value.failure.kind is FailureKind.NO_SUCH_PAGE


@pytest.mark.parametrize(
    ("value", "selection"),
    [(None, None), ("", None), (" ", None), (3, "3"), (3.0, "3"), ("3.0", "3"), (" 1-3 ", "1-3")],
)
def test_the_page_of_a_line(value: object, selection: str | None) -> None:
    assert selection_of(value) == selection


@pytest.mark.parametrize("value", ["zero", 0, 3.5, True, [1], {}, 10**4000, "1" * 5000])
def test_the_page_of_a_line_that_is_none_fails_its_row(value: object) -> None:
    with pytest.raises(RowFailedError, match="no-such-page: page: ") as caught:
        selection_of(value)
    assert len(str(caught.value)) < 150
