"""The OpenAI form without a server: bodies read, answers written piece by piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from idefics_cli.errors import Failure, FailureKind
from idefics_cli.openai_api.errors import ApiError, error_of
from idefics_cli.openai_api.request import read_request
from idefics_cli.openai_api.response import Completion, TextStream, TokenStream, logprobs_of
from idefics_cli.records import Answer, DocumentPart, GeneratedTokens, Generation, Turn

URI = "data:image/png;base64,AAAA"
IMAGE = {"type": "image_url", "image_url": {"url": URI, "detail": "low"}}


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_what_systems_say_is_one_turn_at_the_beginning() -> None:
    read = read_request(
        body(
            {"role": "system", "content": "Be brief."},
            user(IMAGE, text("Who?")),
            {"role": "assistant", "content": "Erik", "tool_calls": None},
            {"role": "developer", "content": [text("In English.")]},
            {"role": "user", "content": "And when?"},
        )
    )
    assert read.turns == (
        Turn("system", ("Be brief.", "\n", "In English.")),
        Turn("user", (DocumentPart(URI), "Who?")),
        Turn("assistant", ("Erik",)),
        Turn("user", ("And when?",)),
    )
    assert read.question == "And when?"
    silent = read_request(body({"role": "system", "content": " "}, {"role": "user", "content": "Who?"}))
    assert silent.turns == (Turn("user", ("Who?",)),)


def test_settings_are_read_and_what_is_unknown_is_ignored() -> None:
    fields = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": -1,
        "stop": "x",
        "stream": True,
        "logprobs": True,
    }
    harmless = {"n": 1, "tools": [], "logit_bias": None, "response_format": {"type": "text"}, "presence_penalty": 0.0}
    read = read_request(body(user(text("?")), **fields, **harmless, user="me", reasoning_effort="low"))
    assert read.generation == Generation(9, 0.5, 0.9, 2**63 - 1, ("x",))
    assert (read.stream, read.logprobs, read.include_usage, read.model) == (True, True, False, "")
    plain = read_request(body(user(text("?")), temperature=0, stream_options={"include_usage": True}, max_tokens=None))
    assert plain.generation == Generation(temperature=0.0)
    assert not plain.include_usage  # nothing is streamed
    assert read_request(body(user(text("?")), temperature=0.001)).generation.temperature == 0.0


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "ftp://x/y.png", "samples/a.png", "", None, 3])
def test_nothing_names_a_file_of_the_server(url: object) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "image", "path": url},
        {"type": "document", "document": url},
    ):
        with pytest.raises(ApiError) as caught:
            read_request(body(user(part, text("?"))), allow_urls=True)
        assert caught.value.status == 400
    for given in ({"file_data": url}, {"file_id": "file-1"}, {"filename": url}):
        if isinstance(url, str) and url and "://" not in url and given.keys() == {"file_data"}:
            assert "base64" in str(read_request(body(user({"type": "file", "file": given}, text("?")))).turns)
            continue
        with pytest.raises(ApiError):
            read_request(body(user({"type": "file", "file": given}, text("?"))), allow_urls=True)


def test_addresses_are_taken_only_where_they_are_allowed() -> None:
    asked = body(user({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, text("?")))
    assert read_request(asked, allow_urls=True).turns[0].content[0] == DocumentPart("https://example.org/a.png")
    with pytest.raises(ApiError, match="--allow-urls"):
        read_request(asked)


@pytest.mark.parametrize("asked", [[], "x", None, {}, {"messages": {}}, {"messages": [3]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": [3]}]}, {"messages": [{"role": "user", "content": {"a": 1}}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, {"messages": [{"role": ["user"], "content": "?"}]},
    {"messages": [{"role": "system", "content": [IMAGE]}, {"role": "user", "content": "?"}]},
    {"messages": [{"role": "user", "content": "?"}], "stream_options": 3, "stream": True},
    {"messages": [{"role": "user", "content": "\ud800"}]}, {"messages": [user(text("\ud800"))]},
    {"messages": [user(text("?"))], "stop": "\ud800"},
    {"messages": [{"role": "user", "content": "?"}], "seed": 1e300}, {"messages": [{"role": "user", "content": "?"}], "temperature": float("nan")}])  # fmt: skip
def test_bodies_that_cannot_be_read_are_refused(asked: object) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(asked)
    assert caught.value.status == 400
    assert json.loads(json.dumps(caught.value.body))["error"].keys() == {"message", "type", "param", "code"}


def test_failures_become_errors_that_say_whether_to_try_again() -> None:
    found = {kind: error_of(Failure(kind, "why")).status for kind in FailureKind}
    assert found.pop(FailureKind.MODEL_ERROR) == 500
    assert found.pop(FailureKind.OUT_OF_MEMORY) == 503
    assert found.pop(FailureKind.ENDPOINT) == 503
    assert set(found.values()) == {400}
    assert error_of(Failure(FailureKind.NO_SUCH_PAGE, "why")).code == "no_such_page"


# --- streams ---

PIECES = ["He", "llo ", "wor", "ld", "", ". E", "nd"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[number] for number in ids).strip()


def so_far(count: int, *stop: str) -> GeneratedTokens:
    return GeneratedTokens(tuple(range(count)), tuple(-0.1 * number for number in range(count)), decode, stop)


def streamed(*stop: str) -> list[str]:
    stream = TextStream()
    return [stream.added(so_far(count, *stop)) for count in range(1, len(PIECES) + 1)]


def test_a_stream_adds_up_to_the_answer() -> None:
    assert "".join(streamed()) == decode(range(len(PIECES)))
    assert streamed()[1] == "llo"  # the space comes with what follows it


@pytest.mark.parametrize("stop", [("world",), (" w",), ("lo w",), ("nothing",), (". End", "wx"), ("d",)])
def test_a_stream_never_sends_what_a_stop_string_takes_back(stop: tuple[str, ...]) -> None:
    whole = decode(range(len(PIECES)))
    cut = whole[: min([at for one in stop if (at := whole.find(one)) >= 0] or [len(whole)])].strip()
    stream = TextStream()
    sent = "".join(stream.added(so_far(count, *stop)) for count in range(1, len(PIECES) + 1))
    assert cut.startswith(sent)
    assert sent + stream.rest(Answer(cut)) == cut


def test_characters_are_sent_whole_and_shrinking_answers_add_nothing() -> None:
    parts = ["a", "a\N{REPLACEMENT CHARACTER}", "a\u4e2d", "a\u4e2db"]
    stream, tokens = TextStream(), TokenStream()
    news = [GeneratedTokens(tuple(range(n)), (0.0,) * n, lambda ids: parts[len(ids) - 1]) for n in (1, 2, 3, 4, 2, 4)]
    assert [stream.added(one) for one in news] == ["a", "", "\u4e2d", "b", "", ""]
    assert "".join(str(entry["token"]) for entry in tokens.added(news[3])) == "a\u4e2db"
    assert tokens.added(news[4]) == []


def test_tokens_with_their_log_probabilities_add_up_to_the_answer() -> None:
    tokens = so_far(len(PIECES), "End")
    whole = logprobs_of(Answer("Hello world.", tokens=tokens))
    assert whole is not None
    entries: Any = whole["content"]
    assert "".join(entry["token"] for entry in entries) == "Hello world."
    assert [entry["logprob"] for entry in entries][:2] == [0.0, -0.1]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    stream = TokenStream()
    assert [entry for count in range(1, len(PIECES) + 1) for entry in stream.added(so_far(count, "End"))] == entries
    held = so_far(6, "End")  # ends with what a stop string begins with
    assert (
        "".join(str(entry["token"]) for entry in TokenStream().added(held, whole="Hello world. E")) == "Hello world. E"
    )
    assert logprobs_of(Answer("x")) is None


def test_the_tokens_of_a_stop_string_that_ends_in_a_space_are_none_of_the_answer() -> None:
    texts = ["1", "10", "10"]  # of a decoder that strips: the last token is the space of "0 "
    tokens = GeneratedTokens((0, 1, 2), (0.0,) * 3, lambda ids: texts[len(ids) - 1], ("0 ",))
    assert [entry["token"] for entry in TokenStream().added(tokens, whole="1")] == ["1"]


def test_chunks_have_the_form_of_the_api() -> None:
    completion = Completion("m")
    cut = Answer("x", prompt_tokens=3, new_tokens=2, is_complete=False)
    made = completion.chunks(include_usage=True)
    stream = made.first() + made.text("x") + made.end(cut)
    *events, done, nothing = stream.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    chunks = [json.loads(one.removeprefix(b"data: ")) for one in events]
    assert all(chunk["usage"] is None for chunk in chunks[:3])
    without = completion.chunks(include_usage=False)
    assert b"usage" not in without.first() + without.text("x") + without.end(cut)
    assert {(chunk["object"], chunk["id"], chunk["model"]) for chunk in chunks} == {
        ("chat.completion.chunk", completion.id, "m")
    }
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:3]] == [None, None, "length"]
    assert chunks[3]["choices"] == []
    assert chunks[3]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.mark.parametrize("model", ["m", '"content": ""', '\\"content": "', "\u00e9\n", '"', "content"])
@pytest.mark.parametrize("text", ["x", 'a "quoted" \\ word\n', "\u4e2d\u2028\x00", ""])
def test_a_chunk_of_text_is_that_of_the_whole_body_written_as_json(model: str, text: str) -> None:
    completion = Completion(model)

    def written(logprobs: object) -> bytes:
        body = {"id": completion.id, "object": "chat.completion.chunk", "created": completion.created, "model": model, "choices": [
            {"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}
        ]}  # fmt: skip
        return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"

    chunks = completion.chunks(include_usage=False)
    assert chunks.text(text) == written(None)
    assert chunks.text(text, [{"token": "x"}]) == written({"content": [{"token": "x"}], "refusal": None})
