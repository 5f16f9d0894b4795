from __future__ import annotations

import io

import pytest

from idefics_cli.errors import InputError
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.read import RecentIds, accepted_answers, read_stream
from idefics_cli.records import Question


def read(content: bytes, *columns: str) -> list[Question]:
    return list(read_stream(io.BytesIO(content), "q", ColumnNames(columns)))


def failures(content: bytes) -> list[str]:
    return [f"{question.location}: {question.failure}" for question in read(content) if question.failure]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_delimiter_line_end_and_byte_order_mark(delimiter: str, mark: str, end: str) -> None:
    table = f'{mark}"question"@document@note{end}"What, now?"@a.pdf@x{end}'.replace("@", delimiter)
    (question,) = read(table.encode())
    assert (question.text, question.document, dict(question.extra)) == ("What, now?", "a.pdf", {"note": "x"})
    assert question.location == "q:2"


def test_one_column_is_enough_and_blank_lines_are_passed_over() -> None:
    questions = read(b'question\nWhat is the total?\n\n"Who, me?"\n')
    assert [(q.text, q.location) for q in questions] == [("What is the total?", "q:2"), ("Who, me?", "q:4")]
    assert [q.text for q in read(b'"question"\n"a"\n')] == ["a"]


@pytest.mark.parametrize("blank", ["\n", "  \n", ",\n", "\r\n", '""\n', "\t\n"])
def test_blank_lines_anywhere_do_not_shift_the_lines(blank: str) -> None:
    table = f"\n\nquestion,note\n{blank}a,1\n{blank}{blank}b,2\n{blank}"
    assert [(q.text, q.location) for q in read(table.encode())] == [("a", "q:5"), ("b", "q:8")]


def test_lines_count_the_newlines_of_quoted_cells() -> None:
    questions = read(b'id,question\n1,"two\nlines"\n2,last\n')
    assert [(q.text, q.location) for q in questions] == [("two\nlines", "q:2"), ("last", "q:4")]


def test_cells_stay_the_text_they_are() -> None:
    (question,) = read(b'question,page,code,empty\n12" pipe,2.0,007,NA\n')
    assert (question.text, question.page, dict(question.extra)) == ('12" pipe', "2", {"code": "007", "empty": "NA"})


@pytest.mark.parametrize("header", ["\ufeff\nquestion,n", "question,n [x]", 'question,"n {""x"": 1"', "question,n}"])
def test_headers_that_are_no_json(header: str) -> None:
    assert [q.text for q in read(f"{header}\na,1\n".encode())] == ["a"]


def test_an_array_over_several_lines_is_told_what_is_wanted() -> None:
    assert "one object a line is wanted" in failures(b'[\n{"question": "a"},\n{"question": "b"}\n]\n')[0]


def test_answers_from_another_column_do_not_replace_the_users_own() -> None:
    (question,) = read(b"question,gold,answers\na,b,c\n", "answers=gold")
    assert str(question.failure) == "bad-question: two columns would be written as 'answers'"


def test_unnamed_columns_pass_through_where_they_hold_something() -> None:
    first, second = read(b"question,,\na,,\nb,,x\n")
    assert (dict(first.extra), dict(second.extra)) == ({}, {"column 3": "x"})


def test_a_cell_may_be_long() -> None:
    (question,) = read(b"question,note\na," + b"x" * 200_000 + b"\n")
    assert len(str(question.extra["note"])) == 200_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"frage,document\nx,y\n",
            r"q:1: not JSON, .* no column 'question' \(found: frage, document\); --column question=NAME",
        ),
        (b"Query,document\nx,y\n", r"did you mean --column question=Query\?"),
        (b"question,Question\nx,y\n", "q:1: two columns are 'question'"),
        (b"question,note,note\nx,y,z\n", "q:1: two columns are 'note'"),
        (b"PK\x03\x04\x14\x00[Content_Types].xml", r"q: an Excel workbook \(XLSX\) .*save it as CSV in UTF-8"),
        (b"PK\x03\x04mimetypeapplication/vnd.oasis.opendocument.spreadsheet", r"an OpenDocument spreadsheet \(ODS\)"),
        (b"\xd0\xcf\x11\xe0\xa1", "an old Excel workbook"),
        ("question\na\n".encode("utf-16"), "UTF-16 text: save it as CSV in UTF-8"),
        ("question\na\n".encode("utf-16-le"), "UTF-16 text or no text"),
        (b"%PDF-1.4\n", "a PDF, not questions"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"qu\xe9stion,document\n", "q:1: not UTF-8 .*Windows-1252"),
    ],
)
def test_what_holds_no_questions_is_said_in_words_that_help(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(content)


def test_a_column_given_that_is_not_there() -> None:
    with pytest.raises(InputError, match="q:1: --column document=file: no column 'file'"):
        read(b"question\na\n", "document=file")


def test_bad_records_of_csv_name_their_line_and_the_others_go_on() -> None:
    content = b'id,question\n1,caf\xe9\n2,"a" b\n3,a,b\n4,\n5,good\n5,again\n6,"open\n7,x\n'
    found = failures(content)
    assert [words.partition(" (byte")[0] for words in found] == [
        "q:2: bad-question: not UTF-8",
        "q:3: bad-question: text after a closing quotation mark; double the quotation marks that belong to a text",
        "q:4: bad-question: 3 cells where the header has 2; put quotes around cells that hold the delimiter",
        "q:5: bad-question: the question is empty",
        "q:7: bad-question: duplicate id '5', first in q:6",
        "q:8: bad-question: a quotation mark that opens here is never closed",
    ]
    assert [q.text for q in read(content) if not q.failure] == ["good"]


def test_bad_lines_of_json_name_their_line_and_column() -> None:
    lines = [b'{"question": "ok"}', b'{"question": nope}', b"[1]", b'{"question": 3}', b'{"text": "x"}', b"\xff", b"7"]
    assert [words.partition(" (byte")[0] for words in failures(b"\n".join(lines))] == [
        "q:2: bad-question: not a line of JSON (column 14: Expecting value)",
        "q:3: bad-question: a JSON array; one object a line is wanted (jq -c '.[]' turns an array into that)",
        "q:4: bad-question: question: a text is wanted",
        "q:5: bad-question: no 'question' in this line (found: text); did you mean --column question=text?",
        "q:6: bad-question: not UTF-8",
        'q:7: bad-question: a JSON object is wanted, as in {"question": "..."}, not 7',
    ]


@pytest.mark.parametrize("first", [b'"text"', b"7", b"null", b"[1]", b"{nope", b'"question": "a"}'])
def test_a_first_line_that_looks_like_json_fails_alone(first: bytes) -> None:
    bad, good = read(first + b'\n{"question": "a"}\n')
    assert (bad.location, bad.failure is None, good.text) == ("q:1", False, "a")


def test_jsonl_keeps_types() -> None:
    first, second, third = read(
        b'{"question": "q", "id": 7, "page": 2, "Answers": ["a", 1.5], "n": 3, "deep": {"x": []}}\n'
        b'{"question": "q", "id": 1.5, "later": "x"}\n{"question": "q", "id": null}\n'
    )
    assert (first.id, first.page, first.answers) == (7, "2", ("a", "1.5"))
    assert dict(first.extra) == {"answers": ["a", 1.5], "n": 3, "deep": {"x": []}}
    assert (second.id, dict(second.extra), third.id) == (1.5, {"later": "x"}, "")


def test_a_number_and_its_text_are_the_same_id() -> None:
    assert failures(b'{"question": "q", "id": 7}\n{"question": "q", "id": "7"}\n') == [
        "q:2: bad-question: duplicate id '7', first in q:1"
    ]


def test_passwords_never_pass_through() -> None:
    for content in (b"question,Password\nq,secret\n", b'{"question": "q", "password": "secret"}'):
        (question,) = read(content)
        assert (question.password, dict(question.extra)) == ("secret", {})
        assert "secret" not in repr(question)


def test_a_bad_page_is_no_bad_question() -> None:
    (question,) = read(b"question,page\nq,zero\n")
    assert (
        str(question.failure) == "no-such-page: page: 'zero' does not name pages: give numbers from 1, as in 1-3,7,-1"
    )


def test_recent_ids_are_remembered_and_their_number_is_bounded() -> None:
    ids = RecentIds()
    assert [ids.add(name, line) for line, name in enumerate(["a", "", "", "b", "a"], 1)] == [None, None, None, None, 1]
    for number in range(99_990):
        assert ids.add(number, number + 10) is None
    assert ids.add("a", 200_000) == 1
    for number in range(100_000, 300_000):
        ids.add(number, number)
    assert ids.add("a", 400_000) is None


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


def test_accepted_answers_nested_too_deep_are_a_text() -> None:
    assert accepted_answers("[" * 100_000) == ("[" * 100_000,)
