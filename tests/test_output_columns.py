from __future__ import annotations

from idefics_cli.records import COLUMNS
from idefics_cli.results.columns import output_columns, own_columns, user_columns


def test_the_users_columns_stand_after_the_id_and_the_key_is_last() -> None:
    columns = output_columns(["note", "answer"])
    at = columns.index("id")
    assert columns[: at + 3] == (
        "document", "page", "question", "answer", "confidence", "status", "error", "warning", "id", "note", "answer_input",
    )  # fmt: skip
    assert columns[-1] == "key"
    assert own_columns(columns) == ("note", "answer_input")
    assert own_columns(COLUMNS) == ()


def test_a_header_that_is_not_ours_is_told() -> None:
    assert own_columns(["question", "answer"]) is None
    assert own_columns([*COLUMNS, "note"]) is None
    assert own_columns(COLUMNS[::-1]) is None


def test_columns_that_bear_our_names_never_collide() -> None:
    for names in (["key", "key_input"], ["key_input", "key"], ["note", "answer", "answers", "answer_input"]):
        mapped = user_columns(names)
        assert list(mapped) == names
        assert len(set(mapped.values()) | set(COLUMNS)) == len(names) + len(COLUMNS)
    assert user_columns(["key", "key_input"]) == {"key": "key_input_input", "key_input": "key_input"}
    assert user_columns(["answers"]) == {"answers": "answers"}


def test_columns_that_come_later_leave_the_earlier_their_names() -> None:
    known = user_columns(["key"])
    assert user_columns(["key_input", "x", "key"], known) == {
        "key": "key_input",
        "key_input": "key_input_input",
        "x": "x",
    }
