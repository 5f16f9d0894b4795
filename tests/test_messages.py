"""Conversations and lists of documents in JSONL: what is read, and how everything else is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import QuestionSettings, RunSettings
from idefics_cli.errors import FailureKind, InputError
from idefics_cli.inputs import read_inputs
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.read import read_stream
from idefics_cli.records import DocumentPart, Question, Turn

TEXT = {"type": "text", "text": "Who?"}
USER = {"role": "user", "content": "Who?"}


def read(**values: Any) -> Question:
    (question,) = read_stream(io.BytesIO(json.dumps(values).encode()), "q", ColumnNames())
    return question


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": [*parts, TEXT]}


@pytest.mark.parametrize(
    ("part", "document", "page"),
    [
        ({"type": "image", "image": "a.png"}, "a.png", None),
        ({"type": "image", "path": "a.png"}, "a.png", None),
        ({"type": "image", "url": "data:image/png;base64,AA=="}, "data:image/png;base64,AA==", None),
        ({"type": "image_url", "image_url": "a.png"}, "a.png", None),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}, "a.png", None),
        ({"type": "document", "document": "a.pdf", "page": "1-3"}, "a.pdf", "1-3"),
        ({"type": "document", "path": "a.pdf", "page": 2}, "a.pdf", "2"),
        ({"type": "file", "file": {"file_data": "data:,x", "filename": "a.pdf", "file_id": None}}, "data:,x", None),
        ({"type": "file", "file": "a.pdf"}, "a.pdf", None),
    ],
)
def test_every_form_of_a_page_is_read(part: dict[str, object], document: str, page: str | None) -> None:
    question = read(messages=[user(part)])
    assert question.failure is None
    assert question.documents == (DocumentPart(document, page),)
    assert question.turns == (Turn("user", (DocumentPart(document, page), "Who?")),)
    assert (question.text, question.document) == ("Who?", None)


def test_turns_keep_their_order_and_the_last_is_the_question() -> None:
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [TEXT, {"type": "image", "image": "a.png"}, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": " Or "}, {"type": "image", "image": "b.png"}, TEXT]},
    ]
    question = read(messages=given, id=7, note="x")
    assert [turn.role for turn in question.turns] == ["system", "user", "assistant", "user"]
    assert question.turns[1].content == ("Who?", DocumentPart("a.png"), "And?")
    assert question.turns[3].content == (" Or ", DocumentPart("b.png"), "Who?")
    assert question.text == "Or Who?"
    assert [part.document for part in question.documents] == ["a.png", "b.png"]
    assert (question.id, dict(question.extra)) == (7, {"note": "x"})


def test_documents_are_paths_or_objects() -> None:
    question = read(question="q", documents=["a.pdf", {"document": "b.pdf", "page": "2"}])
    assert question.documents == (DocumentPart("a.pdf"), DocumentPart("b.pdf", "2"))
    assert question.turns == ()
    asked = read(messages=[{"role": "system", "content": "s"}, USER], documents=["a.pdf"])
    assert asked.turns[1] == Turn("user", (DocumentPart("a.pdf"), "Who?"))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Who?", "messages: a list of turns"),
        ([], "messages: a list of turns"),
        ({}, "messages: a list of turns"),
        ([7], "messages[0]: an object"),
        ([{"content": "x"}], "messages[0]: role 'NoneType'"),
        ([{"role": "tool", "content": "x"}], "messages[0]: role 'tool' is none of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "messages[0]: role 'list'"),
        ([USER, {"role": "system", "content": "x"}, USER], "messages[1]: a system turn stands at the beginning"),
        ([USER, {"role": "assistant", "content": "x"}], "the last turn is the assistant's"),
        ([{"role": "user"}], "messages[0].content: a text or a list"),
        ([{"role": "user", "content": {"type": "text"}}], "messages[0].content: a text or a list"),
        ([{"role": "user", "content": "  "}], "messages[0].content: it is empty"),
        ([{"role": "user", "content": []}], "messages[0].content: it is empty"),
        ([{"role": "user", "content": [{"type": "image", "image": "a"}]}], "the last turn holds no text"),
        ([user("text")], "messages[0].content[0]: a part is one of"),
        ([user({"type": "video", "video": "a"})], "not 'video'"),
        ([user({"type": ["image"]})], "messages[0].content[0]: a part is one of"),
        ([user({"type": "image"})], "messages[0].content[0]: a path or data URI is wanted under one of image, path"),
        ([user({"type": "image", "image": "a", "path": "b"})], "a path or data URI is wanted under one of"),
        ([user({"type": "image", "image": 7})], "messages[0].content[0]: a path or data URI is wanted"),
        ([user({"type": "image", "image": {"url": "a"}})], "messages[0].content[0]: a path or data URI is wanted"),
        ([user({"type": "image_url", "image_url": {"uri": "a"}})], "messages[0].content[0].image_url: 'uri' is not"),
        ([user({"type": "image_url", "image_url": {}})], "messages[0].content[0]: a path or data URI"),
        ([user({"type": "file", "file": {"file_id": "f-1"}})], "'file_id' is not read here"),
        ([user({"type": "text"})], "messages[0].content[0].text: a text is wanted"),
        ([user({"type": "text", "text": "x", "cache_control": {"a": 1}})], "'cache_control' is not read here"),
        ([{**USER, "tool_calls": [{"id": 1}]}], "messages[0]: 'tool_calls' is not read here"),
        ([{"role": "system", "content": [{"type": "image", "image": "a"}]}, USER], "a system turn holds text only"),
        ([user(*[{"type": "image", "image": "a.png"}] * 1000)], "1,000 documents; at most 500"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(messages: object, words: str) -> None:
    failure = read(messages=messages, id="mine").failure
    assert failure is not None
    assert failure.kind is FailureKind.BAD_QUESTION
    assert words in failure.detail
    assert len(failure.detail) < 400


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"question": "q", "messages": [USER]}, "question and messages: give one"),
        ({"question": "q", "documents": ["a"], "document": "b"}, "document and documents name documents"),
        ({"messages": [user({"type": "image", "image": "a"})], "document": "b"}, "document and messages name"),
        ({"messages": [user({"type": "image", "image": "a"})], "documents": ["b"]}, "documents and messages name"),
        ({"question": "q", "documents": "a.pdf"}, "documents: a list is wanted"),
        ({"question": "q", "documents": []}, "documents: a list is wanted"),
        ({"question": "q", "documents": [1]}, "documents[0]: paths, or objects"),
        ({"question": "q", "documents": ["a", {"path": "b"}]}, "documents[1]: 'path' is not read here"),
        ({"question": "q", "documents": [{"document": " "}]}, "documents[0]: a path or data URI"),
        ({"question": "q", "documents": ["a"] * 501}, "501 documents; at most 500"),
        ({"documents": ["a"]}, "no 'question' in this line"),
    ],
)
def test_columns_that_contradict_one_another(values: dict[str, object], words: str) -> None:
    assert words in str(read(**values).failure)


def test_a_selection_that_does_not_read_as_pages_is_no_such_page() -> None:
    for values in (
        {"question": "q", "documents": [{"document": "a", "page": "x"}]},
        {"messages": [user({"type": "image", "image": "a", "page": 0})]},
    ):
        failure = read(**values).failure
        assert failure is not None
        assert failure.kind is FailureKind.NO_SUCH_PAGE


@pytest.mark.parametrize(("column", "way_out"), [("documents", "--column document=documents"), ("Messages", "JSONL")])
def test_a_table_has_no_lists(column: str, way_out: str) -> None:
    with pytest.raises(InputError, match=rf"q:1: column '{column}': CSV has no lists.*{way_out}"):
        list(read_stream(io.BytesIO(f"question,{column}\na,b\n".encode()), "q", ColumnNames()))


def test_a_column_of_one_document_each_may_bear_that_name() -> None:
    (question,) = read_stream(io.BytesIO(b"question,documents\na,b.pdf\n"), "q", ColumnNames(["document=documents"]))
    assert (question.document, question.documents) == ("b.pdf", ())


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_documents_of_a_line_are_found_as_its_document_is(tmp_path: Path) -> None:
    for name in ("a.pdf", "in/b.png", "in/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    parts = user({"type": "document", "path": "in"}, {"type": "image", "image": "a.pdf", "page": 1})
    file = write(
        tmp_path / "q.jsonl",
        {"messages": [parts]},
        {"question": "q", "document": "a.pdf"},
        {"question": "all", "documents": ["*.pdf", "in/*.png"]},
    )
    inputs = read_inputs([], str(file), RunSettings())
    jobs = list(inputs.jobs)
    assert inputs.total == 3
    names = [[Path(document.name).name for document in job.documents] for job in jobs]
    assert sorted(names) == [[], ["a.pdf", "b.png", "c.png"], ["b.png", "c.png", "a.pdf"]]
    first = next(job for job in jobs if job.question.turns)
    assert [part.page for part in first.question.documents] == [None, None, "1"]
    assert first.question.turns[0].content[:3] == first.question.documents
    assert {path.name for path in inputs.paths} == {"q.jsonl", "a.pdf", "b.png", "c.png"}
    assert not inputs.notes


def test_in_a_file_what_is_not_there_is_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").touch()
    file = write(
        tmp_path / "q.jsonl",
        {"question": "q", "documents": ["a.png", "gone.pdf"]},
        {"messages": [user({"type": "image", "image": "http://127.0.0.1/a.png"})]},
        {"messages": [{"role": "robot", "content": "x"}]},
    )
    with pytest.raises(InputError) as caught:
        read_inputs([], str(file), RunSettings())
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{file}:1: bad-question: document 'gone.pdf' is neither in")
    assert second == f"{file}:2: bad-question: 'http://127.0.0.1/a.png': addresses are fetched only with --allow-urls"
    assert third.startswith(f"{file}:3: bad-question: messages[0]: role 'robot'")
    confined = RunSettings(questions=QuestionSettings(root=tmp_path / "root"))
    with pytest.raises(InputError, match="neither below --root"):
        read_inputs([], str(write(tmp_path / "r.jsonl", {"question": "q", "documents": ["a.png"]})), confined)
