"""The OpenAI form from the client's side: bodies written, completions of other servers read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from idefics_cli.openai_api.completion import NoTextError, read_completion
from idefics_cli.openai_api.request import read_request
from idefics_cli.openai_api.response import Completion
from idefics_cli.openai_api.write import write_messages, write_request
from idefics_cli.records import PAGE, Answer, DocumentPart, GeneratedTokens, Generation, Turn, plain_turns
from tests.misbehaving_server import completion

URIS = [f"data:image/png;base64,AAA{letter}" for letter in "ABC"]


def sent(turns: tuple[Turn, ...], uris: list[str], template: str = "{question}", **generation: Any) -> dict[str, Any]:
    """A body as it comes out of the network."""
    body = write_request("m", write_messages(turns, uris, template), Generation(**generation), logprobs=True)
    read = json.loads(json.dumps(body))
    assert isinstance(read, dict)
    return read


def with_documents(turns: tuple[Turn, ...], uris: list[str]) -> tuple[Turn, ...]:
    following = iter(uris)
    return tuple(
        Turn(
            turn.role, tuple(part if isinstance(part, str) else DocumentPart(next(following)) for part in turn.content)
        )
        for turn in turns
    )


@pytest.mark.parametrize(
    "turns",
    [
        plain_turns("What is the total?", 1),
        plain_turns("Which is dearer?", 3),
        plain_turns("No page?", 0),
        (Turn("user", (PAGE, "Who?")), Turn("assistant", ("Erik",)), Turn("user", ("And\nwhen? \u00e9\u4e2d", PAGE))),
        (Turn("user", ("Left:", PAGE, "right:", PAGE, "Which?")),),
        (Turn("system", ("Be brief.",)), Turn("user", (PAGE, "Who?"))),
    ],
)
def test_our_reader_reads_back_what_is_written(turns: tuple[Turn, ...]) -> None:
    pages = sum(part is PAGE for turn in turns for part in turn.content)
    given: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ("x", "y")}
    read = read_request(sent(turns, URIS[:pages], **given))
    assert read.turns == with_documents(turns, URIS)
    assert read.generation == Generation(**given)
    assert (read.model, read.logprobs, read.stream) == ("m", True, False)


def test_what_is_not_given_is_not_written_and_greedy_is_said() -> None:
    assert set(sent(plain_turns("?", 0), [], temperature=0.0)) == {"model", "messages", "temperature", "logprobs"}
    body = write_request("m", [], Generation(5, 0.0), tokens_field="max_completion_tokens")
    assert body == {"model": "m", "messages": [], "max_completion_tokens": 5, "temperature": 0.0}


def test_a_system_turn_is_a_message_and_turns_without_a_page_are_texts() -> None:
    turns = (Turn("system", ("Be brief.",)), Turn("user", (PAGE, "Who?")), Turn("assistant", ("Erik",)))
    system, user, assistant = write_messages(turns, URIS)
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"] == [
        {"type": "image_url", "image_url": {"url": URIS[0]}},
        {"type": "text", "text": "Who?"},
    ]
    assert assistant == {"role": "assistant", "content": "Erik"}


def test_the_template_stands_around_the_last_text_of_the_user() -> None:
    turns = (Turn("user", ("Look:", PAGE, "{x}?")), Turn("assistant", ("{question}",)), Turn("user", ("Then?",)))
    first, answer, last = write_messages(turns, URIS, "Q: {question} Briefly.")
    assert [part.get("text") for part in first["content"]] == ["Look:", None, "Q: {x}? Briefly."]  # type: ignore[attr-defined]
    assert (answer["content"], last["content"]) == ("{question}", "Q: Then? Briefly.")


def test_an_answer_of_our_own_server_is_read_with_its_confidence() -> None:
    tokens = GeneratedTokens((1, 2, 9), (-0.1, -0.2, -0.3), lambda ids: "".join(" Erik"[:2] for _ in ids))
    given = Answer("Erik", 0.9, -0.2, 100, 3, 2, 1.5, 2.5, 3.5, tokens=tokens)
    read = read_completion(json.loads(json.dumps(Completion("m").body(given, logprobs=True))))
    assert (read.text, read.confidence, read.mean_logprob) == ("Erik", 0.9, -0.2)
    assert (read.is_timed, read.vision_ms, read.prefill_ms, read.decode_ms) == (True, 1.5, 2.5, 3.5)
    assert (read.prompt_tokens, read.new_tokens, read.is_complete, read.warning) == (100, 3, True, "")


def test_what_is_not_known_is_null_in_a_body_of_ours() -> None:
    own = Completion("m").body(Answer("Erik", is_scored=False, is_timed=False), logprobs=False)["idefics_cli"]
    assert own == dict.fromkeys(("confidence", "mean_logprob", "vision_ms", "prefill_ms", "decode_ms"), None) | {
        "warning": ""
    }


def test_the_confidence_of_others_is_made_of_their_logprobs() -> None:
    listed = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}, {"logprob": 1e-9}]}
    read = read_completion(completion(" Erik\n", logprobs=listed))
    assert (read.text, read.is_scored) == ("Erik", True)
    assert read.confidence == pytest.approx(math.exp(-0.75))
    assert read.mean_logprob == pytest.approx(-0.25)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "a"}]},
        {"content": [{"logprob": "x"}]},
        {"content": [{"logprob": float("nan")}]},
        {"content": [{"logprob": -1.0}, None]},
        {"content": [{"logprob": True}]},
        [3],
    ],
)
def test_without_usable_logprobs_there_is_no_confidence(logprobs: object) -> None:
    read = read_completion(completion("Erik", logprobs=logprobs))
    assert (read.text, read.is_scored) == ("Erik", False)


def test_an_answer_that_was_cut_says_so_and_a_stop_text_is_cut_off() -> None:
    read = read_completion(completion("a long", finish_reason="length"))
    assert (read.is_complete, read.warning) == (False, "answer cut at 3 tokens")
    assert read_completion(completion("one\nEND two"), ("END", "two")).text == "one"
    assert read_completion(completion("")).text == ""
    assert read_completion({**completion("x"), "usage": "none"}).new_tokens == 0
    assert read_completion(completion("half \ud83d")).text == "half ?"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": 3}}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": 3}]}}]},
        {"object": "error", "message": "overloaded"},
    ],
)
def test_what_is_no_completion_is_no_answer(body: object) -> None:
    with pytest.raises(ValueError, match="answer"):
        read_completion(body)


def test_a_completion_without_text_says_why() -> None:
    with pytest.raises(NoTextError, match="tool_calls"):
        read_completion(completion(None, finish_reason="tool_calls"))
    with pytest.raises(NoTextError, match="content_filter"):
        read_completion(completion("half of", finish_reason="content_filter"))
    refusal = {"role": "assistant", "content": None, "refusal": "I can't"}
    with pytest.raises(NoTextError, match="I can't"):
        read_completion({"choices": [{"message": refusal, "finish_reason": "stop"}]})


def test_a_list_of_texts_is_a_text_and_calls_of_tools_are_none() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Erik"}, {"type": "text", "text": " K"}]
    assert read_completion({"choices": [{"message": {"content": parts}}]}).text == "Erik K"
    for message in (
        {"content": "", "refusal": "I can't"},
        {"content": "", "tool_calls": [{"id": "1"}]},
        {"content": "", "function_call": {"name": "f"}},
    ):
        with pytest.raises(NoTextError):
            read_completion({"choices": [{"message": message, "finish_reason": "stop"}]})
    with pytest.raises(NoTextError, match="--max-new-tokens"):
        read_completion(completion(None, finish_reason="length"))
    for reason in ("error", "abort"):
        with pytest.raises(ValueError, match="broken off"):
            read_completion(completion("half an", finish_reason=reason))
