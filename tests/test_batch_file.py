"""Lines of batch files read by themselves, and the responses that they become."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import QuestionSettings, RunSettings
from idefics_cli.errors import Failure, FailureKind, InputError
from idefics_cli.inputs import read_inputs
from idefics_cli.openai_api.batch_file import read_line, response_of
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.formats import open_records
from idefics_cli.questions.lines import Record
from idefics_cli.records import Answer, ChatOptions, DocumentPart, Generation, Question, Turn
from tests.batch_lines import image, png_uri, request


def read(values: dict[str, Any], problem: str = "", *, allow_urls: bool = False) -> Question:
    return read_line(Record(7, 0, values, problem), "b.jsonl:7", allow_urls=allow_urls)


def test_a_line_is_a_question_with_its_turns_documents_and_settings() -> None:
    question = read(request("a", image(9), "Who?", max_tokens=5, temperature=0, stop=["."], logprobs=True))
    assert (question.id, question.text, question.location, question.failure) == ("a", "Who?", "b.jsonl:7", None)
    assert question.documents == (DocumentPart(png_uri(9)),)
    assert question.turns == (Turn("user", (DocumentPart(png_uri(9)), "Who?")),)
    wanted = Generation(max_new_tokens=5, temperature=0.0, stop=(".",))
    assert question.chat == ChatOptions("some-model", wanted, logprobs=True)


def test_several_turns_a_pdf_and_base64_by_itself() -> None:
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "JVBERi0="}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [pdf, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Erik"},
        {"role": "user", "content": "When?"},
    ]
    question = read(request("a", messages=messages))
    assert question.text == "When?"
    assert [part.document for part in question.documents] == ["data:application/octet-stream;base64,JVBERi0="]
    assert [turn.role for turn in question.turns] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"custom_id": None}, "custom_id"),
        ({"custom_id": ""}, "custom_id"),
        ({"custom_id": 5}, "custom_id"),
        ({"method": "GET"}, "method"),
        ({"method": None}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"url": None}, "url"),
        ({"body": None}, "body"),
        ({"body": "text"}, "body"),
        ({"body": {"messages": []}}, "messages"),
        ({"body": {"messages": [{"role": "user", "content": "?"}], "temperature": 5}}, "temperature"),
        ({"body": {"messages": [{"role": "user", "content": "?"}], "n": 2}}, "n"),
        ({"body": {"messages": [{"role": "user", "content": "?"}], "stream": True}}, "stream"),
    ],
)
def test_what_is_refused_is_named(change: dict[str, Any], named: str) -> None:
    question = read(request("a", "?") | change)
    assert question.failure is not None
    assert question.failure.kind is FailureKind.BAD_QUESTION
    assert named in question.failure.detail
    assert question.chat is not None
    assert question.chat.error is not None
    error: Any = question.chat.error["error"]
    assert (error["param"], error["type"]) == (named, "invalid_request_error")
    response = response_of(None, question.failure, question.chat, "tiny")
    assert (response["status_code"], response["body"]) == (400, {"error": error})


def test_a_refused_line_keeps_its_custom_id_where_it_can_be_read() -> None:
    assert read(request("mine", "?", n=2)).id == "mine"
    assert read(request(5, "?")).id == "5"
    broken = read({}, "not a line of JSON")
    assert (broken.id, str(broken.failure)) == ("", "bad-question: not a line of JSON")


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "a.png"])
def test_no_line_names_a_file_and_an_address_only_where_that_is_allowed(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    assert read(request("a", part, "?"), allow_urls=True).failure is not None
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    refused = read(request("a", part, "?")).failure
    assert refused is not None
    assert "--allow-urls" in refused.detail
    assert read(request("a", part, "?"), allow_urls=True).documents == (DocumentPart("https://example.org/a.png"),)


def test_lines_that_sample_without_a_seed_draw_each_for_itself_and_always_alike() -> None:
    def seed(custom_id: str, **fields: Any) -> int | None:
        chat = read(request(custom_id, "?", **fields)).chat
        assert chat is not None
        return chat.generation.seed

    assert seed("a", temperature=0.7) == seed("a", temperature=0.7)
    assert seed("a", temperature=0.7) != seed("b", temperature=0.7)
    assert 0 <= (seed("a", temperature=0.7) or -1) < 2**63
    assert seed("a", temperature=0.7, seed=3) == 3
    assert seed("a", temperature=0) is None


def test_responses_say_what_the_model_answered_or_why_it_did_not() -> None:
    answer = Answer("12", prompt_tokens=3, new_tokens=2, is_complete=False)
    response = response_of(answer, None, ChatOptions("theirs"), "tiny")
    body: Any = response["body"]
    assert response["status_code"] == 200
    assert (body["model"], body["choices"][0]["finish_reason"], body["usage"]["total_tokens"]) == (
        "theirs",
        "length",
        5,
    )
    plain: Any = response_of(answer, None, None, "tiny")["body"]
    assert plain["model"] == "tiny"
    for kind, status in (
        (FailureKind.OUT_OF_MEMORY, 503),
        (FailureKind.MODEL_ERROR, 500),
        (FailureKind.ENCRYPTED, 400),
    ):
        failed: Any = response_of(None, Failure(kind, "why"), None, "tiny")
        assert failed["status_code"] == status
        assert failed["body"]["error"]["message"] == f"{kind}: why"


LINE = json.dumps(request("a", "?"))


@pytest.mark.parametrize(
    ("first", "columns", "is_batch"),
    [
        (LINE, (), True),
        ("\n \n" + LINE, (), True),
        ('{"custom_id": "a", "body": {', (), True),
        ('{"method": "POST", "url": "/v1/chat/completions", "body": {}}', (), True),
        (LINE, ("question=body",), False),
        ('{"question": "?", "custom_id": "a", "url": "b.png"}', (), False),
        ('{"messages": [], "custom_id": "a", "body": 1}', (), False),
        ('{"id": "batch_req_1", "custom_id": "a", "response": {}, "error": null}', (), False),
        ("question,custom_id,body\na,b,c", (), False),
        ("", (), False),
    ],
)
def test_a_batch_file_is_known_by_its_first_line(first: str, columns: Sequence[str], is_batch: bool) -> None:
    given = ColumnNames(["document=doc", *columns] if columns else [])
    assert open_records(io.BytesIO(first.encode()), "q", given).is_batch is is_batch


@pytest.mark.parametrize(
    ("first", "columns", "way_out"),
    [("garbage {", [], "the first line of the file must be one too"), (LINE, ["id=custom_id"], "leave --column out")],
)
def test_requests_among_questions_are_named_as_what_they_are(
    first: str, columns: list[str], way_out: str, tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{first}\n{LINE}\n")
    given = RunSettings(questions=QuestionSettings(columns=tuple(columns)))
    with pytest.raises(InputError, match=rf"q.jsonl:2: .*a request of an OpenAI batch file: {way_out}"):
        read_inputs([], str(path), given)
