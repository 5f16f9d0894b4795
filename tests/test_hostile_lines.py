"""Lines that nobody would write: each is a failed row that names its line, and the lines around it are asked."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.config import QuestionSettings, RunSettings
from idefics_cli.errors import FailureKind, InputError
from idefics_cli.inputs import read_inputs
from idefics_cli.prefetch import prefetch
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.read import read_stream
from idefics_cli.records import Question

GOOD = b'{"question": "good", "document": "a.pdf"}'
QUESTION = b'{"question": "q", "document": "a.pdf", '
UNREADABLE: dict[str, bytes] = {
    "surrogate in the question": b'{"question": "\\ud800", "document": "a.pdf"}',
    "surrogate in the id": QUESTION + b'"id": "\\uDFFF"}',
    "surrogate in a name": QUESTION + b'"\\udc00": 1}',
    "surrogate deep in a value": QUESTION + b'"x": [{"y": "\\ud83d"}]}',
    "nested 100,000 deep": QUESTION + b'"answers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 100,000 objects": b'{"question": ' * 100_000,
    "nested 500 deep": QUESTION + b'"x": ' + b"[" * 500 + b"]" * 500 + b"}",
    "page of 5,000 digits": QUESTION + b'"page": ' + b"9" * 5_000 + b"}",
    "number of 5,000 digits": QUESTION + b'"x": -' + b"9" * 5_000 + b"}",
    "1e999": QUESTION + b'"x": 1e999}',
    "NaN": QUESTION + b'"x": NaN}',
    "-Infinity": QUESTION + b'"page": -Infinity}',
    "question of a list": b'{"question": ["q"]}',
    "question of null": b'{"question": null}',
    "id of an object": QUESTION + b'"id": {}}',
    "id of true": QUESTION + b'"id": true}',
    "document of a number": b'{"question": "q", "document": 7}',
    "password of a list": QUESTION + b'"password": []}',
    "two questions": QUESTION + b'"Question": "other"}',
    "array": b'[{"question": "q"}]',
    "string": b'"question"',
    "null": b"null",
    "two objects": GOOD + GOOD,
    "torn": GOOD[:-3],
    "control character": b'{"question": "\x01"}',
    "NUL": b"\0",
    "latin-1": '{"question": "caf\xe9"}'.encode("latin-1"),
    "overlong UTF-8": b'{"question": "\xc0\xaf"}',
    "empty object": b"{}",
}
UNPAIRED: dict[str, bytes] = {
    "no such document": b'{"question": "q", "document": "gone.pdf"}',
    "document with a NUL": b'{"question": "q", "document": "a\\u0000.pdf"}',
    "component of 300 characters": json.dumps({"question": "q", "document": "a" * 300 + "/b.pdf"}).encode(),
    "path of 10,000 characters": json.dumps({"question": "q", "document": "a/" * 5_000}).encode(),
    "glob of 1,000 stars": json.dumps({"question": "q", "document": "*" * 1_000 + "b"}).encode(),
    "glob of many folders": json.dumps({"question": "q", "document": "**/" * 30 + "b.pdf"}).encode(),
    "unbalanced glob": b'{"question": "q", "document": "[a.pdf"}',
    "the whole disk": b'{"question": "q", "document": "/"}',
    "a file of others": b'{"question": "q", "document": "/etc/passwd"}',
    "above": b'{"question": "q", "document": ".."}',
    "user": b'{"question": "q", "document": "~/a.pdf"}',
    "address": b'{"question": "q", "document": "http://localhost/a.pdf"}',
}
FAILED_ROWS: dict[str, bytes] = {
    "page zero": QUESTION + b'"page": 0}',
    "page of 4,000 digits": QUESTION + b'"page": ' + b"9" * 4_000 + b"}",
    "page of 5,000 digits in a text": QUESTION + b'"page": "' + b"9" * 5_000 + b'"}',
    "page of true": QUESTION + b'"page": true}',
    "page of a list": QUESTION + b'"page": [1]}',
    "page of a fraction": QUESTION + b'"page": 1.5}',
    "page of words": QUESTION + b'"page": "all"}',
    "data URI that does not decode": b'{"question": "q", "document": "data:image/png;base64,%"}',
    "data URI that is none": b'{"question": "q", "document": "data:"}',
}
ANSWERABLE: dict[str, bytes] = {
    "line separators in a text": '{"question": "a\u2028b\u2029c\u0085d", "document": "a.pdf"}'.encode(),
    "a whole surrogate pair": b'{"question": "\\ud83d\\ude00", "document": "a.pdf"}',
    "answers that look like deep JSON": json.dumps(
        {"question": "q", "document": "a.pdf", "answers": "[" * 100_000}
    ).encode(),
    "a name of 100,000 characters": b'{"question": "q", "document": "a.pdf", "' + b"x" * 100_000 + b'": 1}',
    "a question of 1 MB": b'{"question": "' + b"x" * 1_000_000 + b'", "document": "a.pdf"}',
}
HOSTILE = {**UNREADABLE, **UNPAIRED, **FAILED_ROWS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.pdf").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_plain(question: Question, line: int) -> None:
    assert question.failure
    assert question.location.endswith(f":{line}")
    assert len(question.failure.detail) < 700
    assert "Traceback" not in question.failure.detail
    assert "sys." not in question.failure.detail
    # What is kept of it can be written.
    for text in (question.text, question.document or "", question.id, question.failure.detail, question.extra):
        json.dumps(text, ensure_ascii=False, allow_nan=False).encode()


# As a first line, these two say that what follows is no JSONL.
@pytest.mark.parametrize(
    ("name", "is_first"),
    [(name, is_first) for name in UNREADABLE for is_first in (False, name not in ("NUL", "string"))],
)
def test_a_reader_goes_on_after_a_hostile_line(name: str, is_first: bool) -> None:
    before = [] if is_first else [GOOD]
    content = b"\n".join([*before, UNREADABLE[name], GOOD])
    *start, hostile, end = read_stream(io.BytesIO(content), "q.jsonl", ColumnNames())
    assert [question.text for question in (*start, end)] == ["good"] * (len(before) + 1)
    check_plain(hostile, len(before) + 1)
    assert hostile.failure
    assert hostile.failure.kind is FailureKind.BAD_QUESTION


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_with_a_hostile_line_names_it(folder: Path, name: str) -> None:
    (folder / "q.jsonl").write_bytes(b"\n".join([GOOD, HOSTILE[name], GOOD]))
    settings = RunSettings(questions=QuestionSettings(root=folder))
    if name in FAILED_ROWS:
        (failed,) = (job.question for job in read_inputs([], "q.jsonl", settings).jobs if job.document is None)
        check_plain(failed, 2)
    else:
        with pytest.raises(InputError, match=r"^q\.jsonl:2: bad-question: [^\n]{5,700}$"):
            read_inputs([], "q.jsonl", settings)


@pytest.mark.parametrize("name", ANSWERABLE)
def test_a_strange_line_is_asked(folder: Path, name: str) -> None:
    (folder / "q.jsonl").write_bytes(b"\n".join([GOOD, ANSWERABLE[name], GOOD]))
    jobs = list(read_inputs([], "q.jsonl", RunSettings()).jobs)
    assert [job.question.failure for job in jobs] == [None] * 3
    assert jobs[1].question.text == json.loads(ANSWERABLE[name])["question"]


@pytest.fixture
def hostile_pipe() -> Iterator[None]:
    """A pipe as stdin that a thread fills with every hostile line, each between good ones."""
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    os.close(reading)

    def fill() -> None:
        with os.fdopen(writing, "wb") as sink:
            for line in HOSTILE.values():
                sink.write(GOOD + b"\n" + line + b"\n")
            sink.write(GOOD)

    writer = threading.Thread(target=fill)
    writer.start()
    yield
    os.dup2(before, 0)
    os.close(before)
    writer.join()


def test_every_line_of_a_hostile_pipe_is_one_row(folder: Path, hostile_pipe: None) -> None:
    settings = RunSettings(questions=QuestionSettings(root=folder))
    jobs = list(prefetch(read_inputs([], "-", settings).jobs, 8))
    assert len(jobs) == 2 * len(HOSTILE) + 1
    for job in jobs[::2]:
        assert (job.question.text, job.question.failure) == ("good", None)
        assert job.document
    for line, job in enumerate(jobs[1::2], 1):
        assert job.document is None
        check_plain(job.question, 2 * line)


@pytest.mark.slow  # and large: 0.8 GB
def test_a_line_without_end_is_one_failed_row() -> None:
    content = GOOD + b'\n{"question": "' + b"x" * (256 * 1024 * 1024) + b'"}\n' + GOOD
    first, endless, last = read_stream(io.BytesIO(content), "q", ColumnNames())
    assert (first.text, last.text, last.location) == ("good", "good", "q:3")
    assert str(endless.failure) == "bad-question: longer than 256 MB"
