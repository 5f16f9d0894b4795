"""Chat completions of the tiny model over HTTP: its answers are those of `ask`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from idefics_cli import Session
from idefics_cli.config import ModelSettings, RunSettings
from idefics_cli.server.serving import Server
from tests.servers import SAMPLES, asking, data_uri, events, image, running

PATH = "/v1/chat/completions"
LETTER = {"type": "file", "file": {"filename": "letter.pdf", "file_data": data_uri("letter.pdf", "application/pdf")}}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, httpx2.Client]]:
    with running(model=ModelSettings("tiny", most_new_tokens=100)) as (server, client):
        yield server, client


@pytest.fixture
def client(served: tuple[Server, httpx2.Client]) -> httpx2.Client:
    return served[1]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(settings=RunSettings(model=ModelSettings("tiny"))) as session:
        yield session


def test_answers_are_those_of_a_session(client: httpx2.Client, session: Session) -> None:
    with (SAMPLES.parent / "questions.csv").open(encoding="utf-8", newline="") as stream:
        asked = [(row["document"].removeprefix("documents/"), row["question"]) for row in csv.DictReader(stream)]
    single = [(name, question) for name, question in asked if name.endswith((".png", ".bmp", ".gif", ".webp", ".jpg"))][
        :12
    ]
    assert len({name for name, _ in single}) > 2

    def ask(name: str, question: str) -> httpx2.Response:
        return client.post(PATH, json=asking(question, image(name)))

    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(ask, *zip(*single, strict=True)))
    rows = {}
    for document in dict.fromkeys(name for name, _ in single):  # each page is encoded once
        questions = [question for name, question in single if name == document]
        for row in session.run([str(SAMPLES / document)], questions):
            rows[document, row.question] = row
    for reply, asked_of in zip(replies, single, strict=True):
        row = rows[asked_of]
        body = reply.json()
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": row.answer, "refusal": None}
        assert choice["finish_reason"] == "stop"
        assert body["usage"] == {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.new_tokens,
            "total_tokens": (row.prompt_tokens or 0) + (row.new_tokens or 0),
        }
        assert body["idefics_cli"]["confidence"] == row.confidence
        assert body["object"] == "chat.completion"


def test_a_pdf_is_a_file_and_each_of_its_pages_an_image(client: httpx2.Client) -> None:
    body = client.post(PATH, json=asking("To whom is the letter addressed?", LETTER)).json()
    assert body["choices"][0]["message"]["content"] == "Erik Kansfield"
    bare = {"type": "file", "file": {"file_data": LETTER["file"]["file_data"].split(",")[1]}}  # type: ignore[index]
    assert client.post(PATH, json=asking("To whom is the letter addressed?", bare)).json()["usage"] == body["usage"]
    fax = {"type": "file", "file": {"file_data": data_uri("fax.tiff", "image/tiff")}}
    pages = client.post(PATH, json=asking("What is the date?", fax)).json()["usage"]["prompt_tokens"]
    assert pages > body["usage"]["prompt_tokens"]


def test_a_stream_has_the_tokens_of_the_whole_answer(client: httpx2.Client) -> None:
    body = asking("To whom is the letter addressed?", LETTER, logprobs=True)
    whole = client.post(PATH, json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    reply = client.post(PATH, json=body | options)
    assert reply.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, usage = events(reply.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(middle) > 3
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "Erik Kansfield"
    tokens = [token for chunk in middle for token in chunk["choices"][0]["logprobs"]["content"]]
    assert tokens == whole["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "Erik Kansfield"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1
    plain = events(client.post(PATH, json=body | {"stream": True}).text)
    assert "usage" not in plain[-1]


def test_answers_end_at_stop_strings_and_at_the_limit(client: httpx2.Client) -> None:
    body = asking("To whom is the letter addressed?", LETTER)
    for fields, answer, reason in (
        ({"stop": "sf"}, "Erik Kan", "stop"),
        ({"stop": ["zzz", "k K"]}, "Eri", "stop"),
        ({"max_tokens": 4}, "Erik", "length"),
        ({"max_completion_tokens": 2, "max_tokens": 9}, "Er", "length"),
        ({"max_tokens": 100_000}, "Erik Kansfield", "stop"),
    ):
        (choice,) = client.post(PATH, json=body | fields).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (answer, reason), fields
        chunks = events(client.post(PATH, json=body | fields | {"stream": True}).text)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == answer, fields
        assert chunks[-1]["choices"][0]["finish_reason"] == reason


def test_a_seed_makes_drawn_answers_the_same_again_and_none_lets_them_differ(client: httpx2.Client) -> None:
    def answers(**fields: object) -> set[str]:
        body = asking("What is on this page, in your own words?", image("notice.bmp"), temperature=2.0, **fields)
        return {client.post(PATH, json=body).json()["choices"][0]["message"]["content"] for _ in range(4)}

    assert len(answers(seed=-3)) == 1
    assert len(answers()) > 1


def test_conversations_several_images_and_system_turns(client: httpx2.Client) -> None:
    question = {"type": "text", "text": "To whom is the letter addressed?"}
    messages = [
        {"role": "system", "content": "Answer briefly.", "name": "x"},
        {"role": "user", "content": [LETTER, question]},
        {"role": "assistant", "content": "Erik Kansfield", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, image("notice.bmp")]},
    ]
    reply = client.post(PATH, json={"messages": messages, "user": "u", "metadata": {"a": 1}, "store": False})
    assert reply.status_code == 200
    told = client.post(PATH, json={"messages": [messages[0], messages[1]]}).json()["usage"]["prompt_tokens"]
    untold = client.post(PATH, json={"messages": [messages[1]]}).json()["usage"]["prompt_tokens"]
    assert told > untold


def test_a_conversation_without_an_image_is_answered(client: httpx2.Client) -> None:
    bodies = [client.post(PATH, json={"messages": [{"role": "user", "content": "Hello"}]}).json() for _ in range(2)]
    assert bodies[0]["usage"] == bodies[1]["usage"]
    assert bodies[0]["usage"]["prompt_tokens"] > 3
    assert bodies[0]["choices"] == bodies[1]["choices"]


def test_pages_are_prepared_and_encoded_once_however_they_are_asked(served: tuple[Server, httpx2.Client]) -> None:
    server, client = served
    client.post(PATH, json=asking("What is the date?", image("transparent.png")))
    before = server.engine.stats.pages_encoded
    assert client.get("/metrics").status_code == 200
    hits = metric(client, "idefics_cli_pages_prepared_hits_total")
    for question in ("Who signed it?", "What is the date?"):
        assert client.post(PATH, json=asking(question, image("transparent.png"))).status_code == 200
    assert server.engine.stats.pages_encoded == before
    assert metric(client, "idefics_cli_pages_prepared_hits_total") == hits + 2


def metric(client: httpx2.Client, name: str) -> float:
    (value,) = [line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


def test_models_health_and_metrics(client: httpx2.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.get("/v1/models/tiny").json() == model
    missing = client.get("/v1/models/gpt/x")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert client.get("/health").json() == {"status": "ok", "model": "tiny", "loaded": True}
    text = client.get("/metrics").text
    for name in ("requests_total", "sequences", "requests_queued", "pages_encoded_total", "stage_seconds_total"):
        assert f"# HELP idefics_cli_{name} " in text
    assert client.get("/nowhere").status_code == 404
    wrong = client.get(PATH)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}, 400, "data URI"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "document": "/etc/passwd"}]}]}, 400, "types"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}, {"type": "text", "text": "?"}]}]}, 400, "--allow-urls"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "user"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, 400, "tool"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": float("1e9")}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"n": 2}, 400, "n 2"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"stop": [""]}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"model": 3}, 400, "model"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_in_the_form_of_the_api(
    fields: dict[str, object], status: int, said: str, client: httpx2.Client
) -> None:
    reply = client.post(PATH, json=asking("?", image("notice.bmp")) | fields)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_bodies_that_are_none_and_images_that_are_none(client: httpx2.Client) -> None:
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"text"', b"null"):
        reply = client.post(PATH, content=content)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), content[:9]
    for uri in ("data:image/png;base64,!!", "data:image/png;base64,AAAA", "data:,", "data:image/png;base64,"):
        body = asking("?", image("notice.bmp"), {"type": "image_url", "image_url": {"url": uri}})
        reply = client.post(PATH, json=body)
        assert reply.status_code == 400
        assert "document 2: " in reply.json()["error"]["message"], uri
    lone = client.post(PATH, content=b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    assert lone.status_code == 400
    special = client.post(PATH, json=asking("<image>", image("notice.bmp")))
    assert special.status_code == 400


def test_a_stream_that_cannot_begin_has_a_status_like_any_other(client: httpx2.Client) -> None:
    reply = client.post(PATH, json=asking("?" * 40_000, image("notice.bmp"), stream=True))
    assert reply.status_code == 400
    assert "tokens" in reply.json()["error"]["message"]
