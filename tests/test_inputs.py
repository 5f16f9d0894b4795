from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.config import QuestionSettings, RunSettings
from idefics_cli.errors import FailureKind, InputError, UsageError
from idefics_cli.inputs import Inputs, read_inputs
from idefics_cli.records import Job


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    for name in ("a.pdf", "b.pdf", "c.png"):
        (folder / name).touch()
    return folder


@pytest.fixture
def stdin() -> Iterator[int]:
    """The writing end of a pipe that is stdin."""
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)
    yield writing
    os.dup2(before, 0)
    os.close(before)


def settings(**questions: object) -> RunSettings:
    return RunSettings(questions=QuestionSettings(**questions))  # type: ignore[arg-type]


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(folder: Path, content: str | bytes, *documents: Path, name: str = "q.csv", **given: object) -> Inputs:
    return read_inputs([str(path) for path in documents], write(folder, name, content), settings(**given))


def shown(jobs: object) -> list[tuple[str | None, str]]:
    assert hasattr(jobs, "__iter__")
    return [(Path(j.document.path or "").name if j.document else None, j.question.text) for j in jobs]


# Files


def test_jobs_of_a_document_stand_together_in_the_order_of_first_mention(tmp_path: Path, inbox: Path) -> None:
    table = "question,document,n\n1,b.pdf,x\n2,,x\n3,*.pdf,x\n4,a.pdf,\n5,b.pdf,y\n"
    inputs = read(tmp_path, table, inbox)
    expected = [("b.pdf", n) for n in "1235"] + [("a.pdf", n) for n in "234"] + [("c.png", "2")]
    assert shown(inputs.jobs) == expected
    assert (inputs.total, inputs.columns) == (8, ("n",))
    assert inputs.paths == [tmp_path / "q.csv", *(inbox / name for name in ("b.pdf", "a.pdf", "c.png"))]
    (job, *_) = read(tmp_path, table, inbox).jobs
    assert job.question.location == f"{tmp_path}/q.csv:2"


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".csv"])
def test_jsonl_is_read_by_its_content(tmp_path: Path, inbox: Path, suffix: str) -> None:
    content = '\ufeff\n{"question": "1", "id": 3}\n\n{"question": "2", "more": [1]}\n'
    inputs = read(tmp_path, content, inbox / "a.pdf", name=f"q{suffix}")
    assert inputs.columns == ("more",)
    assert [(job.question.id, job.question.location[-2:]) for job in inputs.jobs] == [(3, ":2"), ("", ":4")]


def test_a_bad_line_is_found_before_the_start(tmp_path: Path, inbox: Path) -> None:
    table = 'question,document\n,a.pdf\ngood,a.pdf\ngone,z.pdf\n"open,\n'
    with pytest.raises(InputError) as caught:
        read(tmp_path, table, inbox)
    assert [line.partition("q.csv:")[2] for line in str(caught.value).splitlines()] == [
        "2: bad-question: the question is empty",
        f"4: bad-question: document 'z.pdf' is neither in {tmp_path} nor among the documents given",
        "5: bad-question: a quotation mark that opens here is never closed",
    ]


def test_ten_bad_lines_are_shown_and_the_others_counted(tmp_path: Path, inbox: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, "id,question\n" + "1,\n" * 25, inbox)
    assert str(caught.value).splitlines()[9:] == [
        f"{tmp_path}/q.csv:11: bad-question: the question is empty",
        "... and 15 more",
    ]


def test_a_bad_page_fails_its_row_alone(tmp_path: Path, inbox: Path) -> None:
    good, bad = read(tmp_path, "question,document,page\n1,a.pdf,1\n2,a.pdf,zero\n", inbox).jobs
    assert (good.question.failure, good.question.page, bad.document) == (None, "1", None)
    assert bad.question.failure
    assert bad.question.failure.kind is FailureKind.NO_SUCH_PAGE


def test_equal_ids_are_an_error_that_names_both_lines(tmp_path: Path, inbox: Path) -> None:
    with pytest.raises(InputError, match=r"q\.csv:4: duplicate id '1', first in .*q\.csv:2$"):
        read(tmp_path, "id,question\n1,a\n2,b\n1,c\n,d\n,e\n", inbox)


def test_equal_questions_without_ids_are_rows_of_their_own(tmp_path: Path, inbox: Path) -> None:
    assert read(tmp_path, "question,note\na,1\na,2\na,2\n", inbox / "a.pdf").total == 3


def test_a_line_with_a_data_uri_decodes_or_fails_as_a_row(tmp_path: Path) -> None:
    lines = '{"question": "1", "document": "data:,x"}\n{"question": "2", "document": "data:image/png;base64,%"}\n'
    inputs = read(tmp_path, lines)
    good, bad = inputs.jobs
    assert (inputs.total, good.document and good.document.data) == (2, b"x")
    assert str(bad.question.failure).startswith("unreadable: ")


def test_addresses_are_documents_that_are_fetched_later(tmp_path: Path) -> None:
    table = "question,document\nWho?,http://127.0.0.1:9/a.pdf\n"
    with pytest.raises(InputError, match=r"q\.csv:2: .*--allow-urls"):
        read(tmp_path, table)
    (job,) = read(tmp_path, table, allow_urls=True).jobs
    assert job.document
    assert (job.document.url, job.document.path, job.question.failure) == ("http://127.0.0.1:9/a.pdf", None, None)


def test_passwords_reach_document_and_question_and_no_column(tmp_path: Path, inbox: Path) -> None:
    inputs = read(tmp_path, "question,document,password\n1,a.pdf,x\n2,a.pdf,\n", inbox)
    assert inputs.columns == ()
    assert [(j.question.password, j.document and j.document.password) for j in inputs.jobs] == [
        ("x", "x"),
        (None, None),
    ]


def test_the_product_and_near_misses_are_said_before_the_start(tmp_path: Path, inbox: Path) -> None:
    assert read(tmp_path, "question,file\n1,a.pdf\n2,b.pdf\n", inbox).notes == [
        "column 'file' passes through; did you mean document? --column document=file",
        "each of 2 questions x 3 documents = 6 rows",
    ]
    mended = read(tmp_path, "question,file\n1,a.pdf\n2,b.pdf\n", inbox, columns=("document=file",))
    assert (mended.notes, mended.total) == ([], 2)


def test_a_column_that_is_nowhere(tmp_path: Path, inbox: Path) -> None:
    with pytest.raises(InputError, match=r"--column id=nr: no column 'nr' \(found: question\)"):
        read(tmp_path, '{"question": "1"}', inbox, columns=("id=nr",))
    with pytest.raises(UsageError, match="'nr' is none of question, document"):
        read(tmp_path, "question\na\n", inbox, columns=("nr=id",))


@pytest.mark.parametrize("name", ["nowhere", "a.pdf", "a\0"])
def test_a_root_that_is_no_folder_is_refused(name: str, tmp_path: Path, inbox: Path) -> None:
    settings = RunSettings(questions=QuestionSettings(root=inbox / name))
    with pytest.raises(UsageError, match=r"--root .*: no folder"):
        read_inputs([str(inbox)], ["what?"], settings)


@pytest.mark.parametrize("content", ["question\n", "question,id\n,\n"])
def test_no_questions_are_an_error_unless_that_is_allowed(tmp_path: Path, inbox: Path, content: str) -> None:
    with pytest.raises(InputError, match="no questions in it"):
        read(tmp_path, content, inbox)
    inputs = read(tmp_path, content, inbox, allow_empty=True)
    assert (list(inputs.jobs), inputs.total) == ([], 0)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_a_header_is_one_that_was_cut_off(tmp_path: Path, inbox: Path, content: str) -> None:
    """A producer that failed is not a night without questions; nothing tells the two apart in JSONL."""
    with pytest.raises(InputError, match="no questions in it; --allow-empty"):
        read(tmp_path, content, inbox)
    with pytest.raises(InputError, match="empty, without even a header"):
        read(tmp_path, content, inbox, allow_empty=True)
    lines = tmp_path / "q.jsonl"
    lines.write_text(content)
    inputs = read_inputs([str(inbox)], str(lines), settings(allow_empty=True))
    assert (list(inputs.jobs), inputs.total) == ([], 0)


def test_an_empty_folder_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with pytest.raises(InputError, match="no document in this folder"):
        read(tmp_path, "question\na\n", tmp_path / "inbox")
    inputs = read(tmp_path, "question\na\n", tmp_path / "inbox", tmp_path / "*.pdf", allow_empty=True)
    assert (list(inputs.jobs), inputs.total) == ([], 0)
    with pytest.raises(InputError, match="gone"):
        read(tmp_path, "question\na\n", tmp_path / "gone", allow_empty=True)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    for name in ("gone.csv", "", "a" * 300):
        with pytest.raises(InputError):
            read_inputs([], str(tmp_path / name), RunSettings())


def test_a_large_file_is_not_held_and_a_change_of_it_is_noticed(tmp_path: Path, inbox: Path) -> None:
    line = '{"question": "%d", "note": "' + "x" * 1_000_000 + '"}\n'
    name = write(tmp_path, "q.jsonl", "".join(line % number for number in range(70)))
    inputs = read_inputs([str(inbox / "a.pdf")], name, RunSettings())
    jobs = iter(inputs.jobs)
    assert [next(jobs).question.text for _ in range(3)] == ["0", "1", "2"]
    with open(name, "a") as file:
        file.write('{"question": "more"}\n')
    with pytest.raises(InputError, match="changed while the run read it"):
        next(jobs)


@pytest.mark.slow
def test_a_million_lines_take_less_memory_than_their_text(tmp_path: Path, inbox: Path) -> None:
    name = write(
        tmp_path, "q.csv", "id,question,document\n" + "".join(f"{n},What is {n}?,a.pdf\n" for n in range(10**6))
    )
    code = (
        "import resource, sys; from idefics_cli.inputs import read_inputs; from idefics_cli.config import RunSettings\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used(); inputs = read_inputs([sys.argv[1]], sys.argv[2], RunSettings())\n"
        "print(sum(1 for _ in inputs.jobs), (used() - before) // 1024)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(inbox), name], capture_output=True, text=True, check=True)
    rows, megabytes = map(int, result.stdout.split())
    assert rows == 10**6
    assert megabytes < 120


# Pipes


def test_a_pipe_gives_a_question_when_its_line_is_there(inbox: Path, stdin: int) -> None:
    os.write(stdin, b'{"question": "first", "note": 1}\n')
    inputs = read_inputs([str(inbox / "a.pdf")], "-", RunSettings())
    jobs = iter(inputs.jobs)
    assert (next(jobs).question.text, inputs.columns, inputs.total) == ("first", ("note",), None)
    os.write(stdin, b'{"question": "second", "page": "zero"}\n')
    assert str(next(jobs).question.failure).startswith("no-such-page")
    os.close(stdin)
    assert list(jobs) == []


def test_a_pipe_of_csv_gives_a_question_when_its_line_is_there(inbox: Path, stdin: int) -> None:
    os.write(stdin, b"question,id\nfirst,1\n")
    jobs = iter(read_inputs([str(inbox / "a.pdf")], "-", RunSettings()).jobs)
    assert next(jobs).question.text == "first"
    os.write(stdin, b"second,1\n")
    assert str(next(jobs).question.failure) == "bad-question: duplicate id '1', first in <stdin>:2"
    os.close(stdin)
    assert list(jobs) == []


def test_columns_of_a_pipe_are_those_of_the_lines_that_are_there(inbox: Path, stdin: int) -> None:
    os.write(stdin, b'{"question": "1", "x": 1}\n{"question": "2", "y": 1, "file": "a"}\n{"question": "3", "tor')
    inputs = read_inputs([str(inbox)], "-", RunSettings())
    assert inputs.columns == ("x", "y", "file")
    assert inputs.notes == [
        "column 'file' passes through; did you mean document? --column document=file",
        "each question without a document is asked of 3 documents",
    ]
    os.write(stdin, b'n": 1, "z": 2}\n')
    os.close(stdin)
    jobs = list(inputs.jobs)
    assert len(jobs) == 9
    assert dict(jobs[-1].question.extra) == {"torn": 1, "z": 2}


def test_a_pipe_with_a_document_has_no_near_miss_of_it(inbox: Path, stdin: int) -> None:
    os.write(stdin, b'{"question": "1", "document": "a.pdf", "file": 1}\n')
    os.close(stdin)
    assert read_inputs([str(inbox)], "-", RunSettings()).notes == []


def test_a_stdin_that_is_a_folder_or_closed(tmp_path: Path, stdin: int) -> None:
    os.close(stdin)
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, 0)
    os.close(folder)
    with pytest.raises(InputError, match="Is a directory"):
        read_inputs([], "-", RunSettings())
    os.close(0)
    with pytest.raises(InputError, match="-: Bad file descriptor"):
        read_inputs([], "-", RunSettings())


def test_a_first_line_in_pieces(inbox: Path, stdin: int) -> None:
    os.write(stdin, b'\n{"question": ')

    def finish() -> None:
        os.write(stdin, b'"late", "x": 1}\n')
        os.close(stdin)

    threading.Timer(0.1, finish).start()
    inputs = read_inputs([str(inbox / "a.pdf")], "-", RunSettings())
    assert (inputs.columns, shown(inputs.jobs)) == (("x",), [("a.pdf", "late")])


def test_a_pipe_that_holds_no_questions(inbox: Path, stdin: int) -> None:
    os.write(stdin, b"nothing,here\n1,2\n")
    with pytest.raises(InputError, match="<stdin>:1: not JSON, and as CSV no column 'question'"):
        read_inputs([], "-", RunSettings())


def test_an_empty_pipe(inbox: Path, stdin: int) -> None:
    os.close(stdin)
    with pytest.raises(InputError, match="<stdin>: no questions in it"):
        read_inputs([], "-", RunSettings())
    assert list(read_inputs([], "-", settings(allow_empty=True)).jobs) == []


def test_a_fifo_is_read_as_a_pipe(tmp_path: Path, inbox: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=('{"question": "q"}\n',))
    writer.start()
    inputs = read_inputs([str(inbox / "a.pdf")], str(tmp_path / "fifo"), RunSettings())
    assert (inputs.total, shown(inputs.jobs)) == (None, [("a.pdf", "q")])
    writer.join()


# Questions of the command line


def test_questions_of_the_command_line(inbox: Path) -> None:
    inputs = read_inputs([str(inbox / "a.pdf"), str(inbox / "b.pdf")], ["one", " two "], RunSettings())
    assert shown(inputs.jobs) == [("a.pdf", "one"), ("a.pdf", "two"), ("b.pdf", "one"), ("b.pdf", "two")]
    assert (inputs.total, inputs.columns) == (4, ())
    assert inputs.notes == ["each of 2 questions x 2 documents = 4 rows"]


@pytest.mark.parametrize(
    ("questions", "words"), [(["one", " "], "question 2 is empty"), (["\udcff"], "not UTF-8"), ([], "no question")]
)
def test_questions_of_the_command_line_that_can_not_be_asked(inbox: Path, questions: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_inputs([str(inbox)], questions, RunSettings())


def test_a_question_needs_a_document() -> None:
    with pytest.raises(InputError, match="no document was given"):
        read_inputs([], ["q"], RunSettings())


def test_documents_from_stdin_and_addresses(inbox: Path, stdin: int) -> None:
    os.write(stdin, b"bytes")
    os.close(stdin)
    documents = ["https://example.org/a.pdf", "-", str(inbox / "a.pdf"), str(inbox)]
    with pytest.raises(InputError, match=r"https://example\.org/a\.pdf: .*--allow-urls"):
        read_inputs(documents, ["q"], RunSettings())
    found = [job.document for job in read_inputs(documents, ["q"], settings(allow_urls=True)).jobs if job.document]
    assert [document.url for document in found][:1] == ["https://example.org/a.pdf"]
    assert [document.data for document in found][1:2] == [b"bytes"]
    assert [Path(document.path or "").name for document in found[2:]] == ["a.pdf", "b.pdf", "c.png"]
    with pytest.raises(UsageError, match="both come from stdin"):
        read_inputs(["-"], "-", RunSettings())


def test_files_that_are_no_documents_are_mentioned(inbox: Path) -> None:
    (inbox / "notes.txt").touch()
    assert read_inputs([str(inbox)], ["q"], RunSettings()).notes == [
        "1 question x 3 documents = 3 rows",
        f"1 file passed over, for example {inbox}/notes.txt",
    ]


def test_jobs_are_made_when_they_are_asked_for(inbox: Path) -> None:
    job = next(iter(read_inputs([str(inbox)], ["q"], RunSettings()).jobs))
    assert isinstance(job, Job)
