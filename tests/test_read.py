from __future__ import annotations

import io
from pathlib import Path

import pytest

from idefics_cli.errors import InputError
from idefics_cli.questions.read import accepted_answers, read_csv, read_file, read_jsonl, read_stream


def failures(lines: list[bytes]) -> list[str]:
    return [f"{q.place}: {q.failure}" for q in read_jsonl(lines, "f.jsonl") if q.failure]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_delimiter_with_or_without_a_byte_order_mark(delimiter: str, mark: str) -> None:
    table = mark + f"question{delimiter}document{delimiter}note\nWhat, now?{delimiter}a.pdf{delimiter}x\n".replace(
        "What, now?", '"What, now?"'
    )
    (question,) = read_csv(table.encode(), "q.csv")
    assert (question.text, question.document, dict(question.extra)) == ("What, now?", "a.pdf", {"note": "x"})


def test_one_column_is_enough_and_blank_lines_are_passed_over() -> None:
    questions = read_csv(b"question\nWhat is the total?\n\nWho, me?\n".replace(b"Who, me?", b'"Who, me?"'), "q.csv")
    assert [(q.text, q.place) for q in questions] == [("What is the total?", "q.csv:2"), ("Who, me?", "q.csv:4")]


def test_places_count_the_newlines_of_quoted_cells() -> None:
    questions = read_csv(b'id,question\n1,"two\nlines"\n2,last\n', "q.csv")
    assert [q.place for q in questions] == ["q.csv:2", "q.csv:4"]
    assert questions[0].text == "two\nlines"


def test_values_stay_the_text_they_are() -> None:
    (question,) = read_csv(b"question,page,code,empty\nq,2.0,007,NA\n", "q.csv")
    assert (question.page, dict(question.extra)) == ("2", {"code": "007", "empty": "NA"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "q.csv: no questions"),
        (b"question\n", "q.csv: no questions"),
        (b"frage,document\nx,y\n", "q.csv:1: no column 'question'"),
        (b"question,document\nx,y,z\n", "q.csv:2: 3 cells where the header has 2"),
        (b"question\n\xff\xfe\n", "q.csv:2: not UTF-8"),
        (b"id,question\n1,a\n1,b\n", "q.csv:3: bad-question: id '1' stands in .*q.csv:2 too"),
        (b"id,question\n1,\n", "q.csv:2: bad-question: the question is empty"),
        (b"question,page\na,zero\n", "q.csv:2: bad-question: page: 'zero' are no pages"),
    ],
)
def test_bad_csv_names_file_and_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_file(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: No such file"):
        read_file(tmp_path / "gone.csv")


def test_bad_jsonl_names_file_and_line() -> None:
    assert failures([b'{"question": "ok"}', b"{nope", b"[1]", b'{"question": 3}', b'{"text": "x"}', b"\xff"]) == [
        "f.jsonl:2: bad-question: not a line of JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        'f.jsonl:3: bad-question: a JSON object is wanted, as in {"question": "..."}, not list',
        "f.jsonl:4: bad-question: the question is empty",
        "f.jsonl:5: bad-question: no 'question' in this line",
        "f.jsonl:6: bad-question: not a line of JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ]


def test_jsonl_keeps_types_of_the_users_columns() -> None:
    (question,) = read_jsonl(
        [b'{"question": "q", "id": 7, "page": 2, "answers": ["a", 1.5], "n": 3, "deep": {"x": []}}'], "f"
    )
    assert (question.id, question.page, question.answers) == ("7", "2", ("a", "1.5"))
    assert dict(question.extra) == {"answers": ["a", 1.5], "n": 3, "deep": {"x": []}}


def test_a_stream_is_jsonl_or_csv_by_its_first_character() -> None:
    assert [q.text for q in read_stream(io.BytesIO(b'\n{"question": "a"}\n{"question": "b"}'))] == ["a", "b"]
    assert [q.text for q in read_stream(io.BytesIO(b"question\na\nb\n"))] == ["a", "b"]
    assert list(read_stream(io.BytesIO(b"\n\n"))) == []


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("a|b", ("a", "b")),
        ('["a|b", "c"]', ("a|b", "c")),
        ("", ()),
        (None, ()),
        (["x", ""], ("x",)),
        (5, ("5",)),
        ("[x", ("[x",)),
    ],
)
def test_accepted_answers(cell: object, answers: tuple[str, ...]) -> None:
    assert accepted_answers(cell) == answers


@pytest.mark.parametrize("blank", ["\n", "  \n", ",\n", "\r\n", '""\n', "\t\n"])
def test_blank_lines_anywhere_do_not_shift_the_places(blank: str) -> None:
    table = f"\n\nquestion,note\n{blank}a,1\n{blank}{blank}b,2\n{blank}"
    assert [(q.text, q.place) for q in read_csv(table.encode(), "q")] == [("a", "q:5"), ("b", "q:8")]
