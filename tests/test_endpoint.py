"""A server of the OpenAI form as an engine, over real HTTP: whole runs against one that misbehaves."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import html
import io
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from idefics_cli import batch
from idefics_cli.config import (
    Across,
    Duration,
    EndpointSettings,
    Format,
    ModelSettings,
    OutputSettings,
    PageSettings,
    Quantize,
    QuestionSettings,
    RetryFailed,
    RunSettings,
)
from idefics_cli.endpoint.address import read_address
from idefics_cli.endpoint.client import list_models
from idefics_cli.endpoint.errors import TransientError
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import PreparedPage, Request, Row
from idefics_cli.session import Session, open_engine_of
from tests.misbehaving_server import DROP, OK, Behave, MisbehavingServer, Reply, completion, error, misbehaving

Png = Callable[..., Path]
BUSY = error(429, "too many", code="rate_limit")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDEFICS_CLI_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def settings(url: str, **given: Any) -> RunSettings:
    """Those of a run with short delays; what belongs to no endpoint is given by its record."""
    records: dict[str, Any] = {name: given.pop(name) for name in ("pages", "model", "output") if name in given}
    records["questions"] = given.pop("asking", QuestionSettings())
    given = {"retry_delay": 0.01, "give_up_after": Duration(60.0), **given}
    records.setdefault("pages", PageSettings(workers=1))
    return RunSettings(endpoint=EndpointSettings(url, **given), **records)


def rows_of(server: MisbehavingServer, document: Path, questions: list[str], **given: Any) -> list[Row]:
    with Session(settings=settings(server.url, **given)) as session:
        return list(session.run([str(document)], questions))


def run_to(path: Path, url: str, document: Path, questions: list[str], **given: Any) -> batch.BatchResult:
    output = OutputSettings(path, resume=True, retry_failed=given.pop("retry_failed", None))
    return batch.run([str(document)], questions, settings(url, output=output, **given), io.StringIO())


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def asked(count: int) -> list[str]:
    return [f"Question {number}?" for number in range(count)]


def test_a_row_says_what_the_server_says(grey_png: Png) -> None:
    said = completion("Erik", logprobs={"content": [{"logprob": -0.5}]})
    with misbehaving(lambda *_: Reply(200, said)) as server:
        (row,) = rows_of(server, grey_png("a.png", 90), ["Who?"])
    assert (row.answer, row.status, row.model, row.crops) == ("Erik", "ok", "served", 1)
    assert row.confidence == pytest.approx(0.60653, abs=1e-4)
    assert (row.prompt_tokens, row.new_tokens) == (90, 3)
    assert (row.batch_size, row.vision_ms, row.prefill_ms, row.decode_ms) == (None, None, None, None)
    assert row.latency_ms is not None
    (body,) = server.bodies
    image, question = body.pop("messages")[0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert question == {"type": "text", "text": "Who?"}
    assert body == {"model": "served", "max_tokens": 64, "temperature": 0.0, "logprobs": True}
    assert "authorization" not in server.headers[-1]


def test_a_tenth_of_all_requests_dropped_delayed_or_refused_and_every_row_is_answered(
    grey_png: Png, tmp_path: Path
) -> None:
    wrongs = [
        DROP,
        Reply(delay=0.6),
        error(500, "boom"),
        Reply(503, b"<html>busy</html>"),
        BUSY,
        Reply(200, b"<html>a gateway's page</html>"),
        Reply(429, {"error": "slow down"}, {"retry-after": "0.05"}),
        Reply(200, {"choices": []}),
        Reply(502, b""),
    ]

    def behave(number: int, body: dict[str, Any]) -> Reply:
        return wrongs[number // 10 % len(wrongs)] if number % 10 == 0 else OK

    questions = asked(300)
    with misbehaving(behave) as server:
        path = tmp_path / "rows.csv"
        result = run_to(path, server.url, grey_png("a.png", 90), questions, endpoint_timeout=0.4)
        assert len(server.bodies) > 320
    rows = read(path)
    assert [row["answer"] for row in rows] == [f"{question} answered" for question in questions]
    assert result.stats.failed == 0


def test_as_many_requests_at_once_as_the_server_takes(grey_png: Png) -> None:
    """Told 429 beyond four at once, all are answered; without that, up to `--concurrency` are under way."""
    taken = threading.Semaphore(4)

    def behave(number: int, body: dict[str, Any]) -> Reply:
        if not taken.acquire(blocking=False):
            return BUSY
        threading.Event().wait(0.005)
        taken.release()
        return OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), asked(150), concurrency=32)
        assert {row.status for row in rows} == {"ok"}
    with misbehaving(lambda *_: Reply(delay=0.02)) as server:
        rows_of(server, grey_png("a.png", 90), asked(60), concurrency=3)
        assert 2 <= server.most_at_once <= 3


def test_no_request_is_sent_before_retry_after(grey_png: Png) -> None:
    def behave(number: int, body: dict[str, Any]) -> Reply:
        return Reply(429, {}, {"retry-after": "1"}) if number == 1 else OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["Who?"])
    assert rows[0].status == "ok"
    assert (rows[0].latency_ms or 0) >= 1000


def poisoned(reply: Reply) -> Behave:
    return lambda _, body: reply if "poison" in json.dumps(body["messages"]) else OK


@pytest.mark.parametrize(
    ("reply", "error_words", "tries"),
    [
        (error(400, "no such image"), "endpoint: HTTP 400: no such image", 1),
        (Reply(422, {"detail": "Unexpected fields: {'x'}"}), "endpoint: HTTP 422: Unexpected fields: {'x'}", 1),
        (error(413, "too big"), "too-large: HTTP 413: too big", 1),
        (error(400, "32768 tokens", code="context_length_exceeded"), "too-large: HTTP 400: 32768 tokens", 1),
        (error(400, "damaged image", code="unreadable"), "unreadable: HTTP 400: damaged image", 1),
        (error(400, "This model's maximum context length is 4096 tokens"), "too-large: HTTP 400: This model's", 1),
        (error(400, "the request exceeds the available context size"), "too-large: HTTP 400: the request", 1),
        (error(422, "`inputs` must have less than 4095 tokens. Given: 5000"), "too-large: HTTP 422: `inputs`", 1),
        (error(400, "\x1b[31mred\x07"), "endpoint: HTTP 400: \ufffd[31mred\ufffd", 1),
        (Reply(200, completion(None)), "endpoint: its answer holds no text (finish_reason stop)", 1),
        (Reply(200, completion("half", finish_reason="error")), "endpoint: its answer was broken off", 8),
        (error(500, "boom"), "endpoint: HTTP 500: boom (8 tries)", 8),
        (DROP, "endpoint: connection failed: ", 8),
        (Reply(200, b"<html>Welcome</html>"), "endpoint: its answer is no JSON: <html>Welcome</html> (8 tries)", 8),
        (Reply(200, {"ok": True}), "endpoint: its answer has no choices: {'ok': True} (8 tries)", 8),
    ],
)
def test_what_can_not_pass_fails_its_own_row(grey_png: Png, reply: Reply, error_words: str, tries: int) -> None:
    with misbehaving(poisoned(reply)) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "poison?", "Two?"])
        asked_for = sum("poison" in json.dumps(body) for body in server.bodies)
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert rows[1].error.startswith(error_words)
    assert (rows[1].answer, asked_for) == ("", tries)


def test_a_request_that_takes_all_its_time_fails_its_row_after_three(grey_png: Png) -> None:
    with misbehaving(poisoned(Reply(delay=0.5))) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "poison?"], endpoint_timeout=0.2)
    assert [row.status for row in rows] == ["ok", "failed"]
    assert rows[1].error == "endpoint: no answer within 0.2 s (--endpoint-timeout) (3 tries)"


def test_rows_that_failed_for_the_endpoint_are_asked_again(grey_png: Png, tmp_path: Path) -> None:
    document, path = grey_png("a.png", 90), tmp_path / "rows.csv"
    questions = ["One?", "poison?"]
    with misbehaving(poisoned(error(500, "boom"))) as server:
        assert run_to(path, server.url, document, questions).stats.failed == 1
        server.behave = lambda *_: OK
        result = run_to(path, server.url, document, questions, retry_failed=RetryFailed.TRANSIENT)
    assert (result.stats.rows, result.stats.failed) == (1, 0)
    assert {row["status"] for row in read(path)} == {"ok"}


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_lost(
    grey_png: Png, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document, path = grey_png("a.png", 90), tmp_path / "rows.csv"
    questions = asked(40)
    is_gone = threading.Event()

    def behave(number: int, body: dict[str, Any]) -> Reply:
        if number > 15:
            is_gone.set()
        return DROP if is_gone.is_set() else OK

    def close_when_gone() -> None:
        is_gone.wait()
        server.socket.close()

    with misbehaving(behave) as server:
        url, port = server.url, server.server_address[1]
        ending = threading.Thread(target=close_when_gone)
        ending.start()
        with pytest.raises(ModelError, match=r"no request has passed for 1 s; the last: connection failed") as caught:
            run_to(path, url, document, questions, concurrency=4, give_up_after=Duration(1.0))
        ending.join()
    assert caught.value.exit_code == 4
    before = read(path)
    assert {row["status"] for row in before} == {"ok"}
    assert 10 <= len(before) <= 15
    with misbehaving(port=int(port)) as server:
        result = run_to(path, server.url, document, questions, concurrency=4)
        assert len(server.bodies) == 40 - len(before)
    assert result.progress.skipped == len(before)
    rows = read(path)
    assert sorted(row["answer"] for row in rows) == sorted(f"{question} answered" for question in questions)
    assert len(rows) == 40


def test_a_server_that_comes_back_is_gone_on_with(grey_png: Png, caplog: pytest.LogCaptureFixture) -> None:
    """All requests are refused for a while, many more times than the budget of any one of them."""
    downs = 120

    def behave(number: int, body: dict[str, Any]) -> Reply:
        return Reply(503, b"") if 20 < number <= 20 + downs else OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), asked(50), retry_delay=0.001, concurrency=8)
        assert len(server.bodies) == 50 + downs
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 407])
def test_what_no_request_can_pass_ends_the_run_at_once(grey_png: Png, tmp_path: Path, status: int) -> None:
    path = tmp_path / "rows.csv"
    with misbehaving(lambda *_: error(status, "not for you")) as server:
        with pytest.raises(ModelError, match=f"HTTP {status}: not for you"):
            run_to(path, server.url, grey_png("a.png", 90), asked(50), concurrency=2)
        assert len(server.bodies) <= 2
    assert not path.exists()


def test_redirects_are_not_followed(grey_png: Png) -> None:
    with misbehaving() as other:
        reply = Reply(307, b"", {"location": f"{other.url}/v1/chat/completions"})
        with misbehaving(lambda *_: reply) as server, pytest.raises(ModelError, match="it is to be asked at http"):
            rows_of(server, grey_png("a.png", 90), ["Who?"])
        assert other.bodies == []


def test_a_404_of_one_row_is_its_own_once_others_have_passed(grey_png: Png) -> None:
    replies = {"poison": error(404, "no such thing")}

    def behave(number: int, body: dict[str, Any]) -> Reply:
        return replies["poison"] if "poison" in json.dumps(body["messages"]) else OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "Two?", "poison?"], concurrency=1)
    assert [row.status for row in rows] == ["ok", "ok", "failed"]


def test_the_other_name_of_the_longest_answer_is_learned_once_and_logprobs_are_left_out(grey_png: Png) -> None:
    def behave(number: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return error(400, "Unsupported parameter", param="max_tokens")
        if "logprobs" in body:
            return Reply(422, {"detail": "Unexpected fields in the request: {'logprobs'}"})
        return OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), asked(5), concurrency=1)
        assert len(server.bodies) == 7
        assert server.bodies[-1]["max_completion_tokens"] == 64
    assert {row.status for row in rows} == {"ok"}
    assert {row.confidence for row in rows} == {None}


def test_the_key_is_sent_and_never_told(
    grey_png: Png, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IDEFICS_CLI_API_KEY", "sk-very-secret")
    document, path = grey_png("a.png", 90), tmp_path / "rows.csv"
    reply = error(400, "key sk-very-secret may not see this")
    with caplog.at_level(logging.DEBUG), misbehaving(poisoned(reply)) as server:
        run_to(path, server.url, document, ["One?", "poison?"])
        assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
        server.behave = lambda *_: error(401, "wrong: sk-very-secret")
        with pytest.raises(ModelError, match=r"HTTP 401: wrong: \*\*\*"):
            run_to(path, server.url, document, ["Another?"])
    assert "secret" not in path.read_text(encoding="utf-8")
    assert "secret" not in caplog.text.replace(str(path), "")


ODD_KEY = 'k"<b>&/%c\\very-secret+='
"""Of characters that JSON, HTML and addresses write otherwise."""


@pytest.mark.parametrize(
    "reply",
    [
        error(400, f"wrong key {ODD_KEY}"),
        Reply(400, {"detail": [{"input": ODD_KEY}]}),
        Reply(400, f"<html><b>wrong key</b> {ODD_KEY}</html>".encode()),
        Reply(400, f"<html><b>wrong key</b> {html.escape(ODD_KEY)}</html>".encode()),
        Reply(307, b"", {"location": f"http://127.0.0.1/?key={quote(ODD_KEY, safe='')}"}),
        Reply(200, {"choices": [{"key": ODD_KEY}]}),
    ],
)
def test_a_key_is_not_told_however_the_server_writes_it(
    grey_png: Png, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setenv("IDEFICS_CLI_API_KEY", ODD_KEY)
    with misbehaving(poisoned(reply)) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "poison?"], concurrency=1)
        assert server.headers[-1]["authorization"] == f"Bearer {ODD_KEY}"
    assert (rows[1].status, "***" in rows[1].error) == ("failed", True)
    assert "secret" not in rows[1].error


@pytest.mark.parametrize("key", ["x", "-", "max"])
def test_a_key_that_is_a_part_of_other_words_does_not_change_what_errors_say(
    grey_png: Png, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Such keys are given to servers that want none; what is refused must still be understood."""
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def behave(number: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return error(400, f"Use 'max_completion_tokens' in place of 'max_tokens'; key {key}")
        if "poison" in json.dumps(body["messages"]):
            return error(400, f"This model's maximum context length is 4096 tokens; key {key}")
        return OK

    with misbehaving(behave) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "poison?"], concurrency=1)
    assert [row.status for row in rows] == ["ok", "failed"]
    assert rows[1].error == "too-large: HTTP 400: This model's maximum context length is 4096 tokens; key ***"


def test_a_proxy_that_is_not_there_is_named(grey_png: Png, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    words = "HTTP_PROXY is set: NO_PROXY says which hosts"
    with misbehaving() as server:
        with pytest.raises(ModelError, match=words):
            rows_of(server, grey_png("a.png", 90), ["One?"])
        with pytest.raises(ModelError, match=words):
            rows_of(server, grey_png("a.png", 90), ["One?"], model=ModelSettings("m"), give_up_after=Duration(0.1))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "bad key sk-very-secret"}},
        {"choices": [{"authorization": "Bearer sk-very-secret"}]},
        completion(None, finish_reason="sk-very-secret"),
        {"choices": [{"message": {"content": "", "refusal": "not for sk-very-secret"}}]},
        {"choices": [{"message": {"content": {"sk-very-secret": 1}}}]},
        completion("x") | {"idefics_cli": {"warning": "sk-very-secret"}},
        b"x" * 290 + b" sk-very-secret",
        b"x" * 190 + b" sk-very-secret",
    ],
)
def test_a_key_in_an_answer_of_success_is_in_no_error_or_warning(
    grey_png: Png, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: object
) -> None:
    monkeypatch.setenv("IDEFICS_CLI_API_KEY", "sk-very-secret")
    with caplog.at_level(logging.DEBUG), misbehaving(lambda *_: Reply(200, body)) as server:
        (row,) = rows_of(server, grey_png("a.png", 90), ["One?"])
    assert row.error or row.warning
    assert "sk-very" not in row.error + row.warning + caplog.text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTP_PROXY", "ftp://127.0.0.1:1", "Unknown scheme for proxy"),
        ("HTTP_PROXY", "http://127.0.0.1:99999", "port must be"),
        ("SSL_CERT_FILE", "/not/there.pem", "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE"),
    ],
)
@pytest.mark.parametrize("model", [ModelSettings(), ModelSettings("m")])
def test_an_environment_that_allows_no_connection_is_a_model_error(
    grey_png: Png, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str, model: ModelSettings
) -> None:
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with misbehaving() as server, pytest.raises(ModelError, match=words):
        rows_of(server, grey_png("a.png", 90), ["One?"], model=model)


def test_a_key_that_travels_in_the_clear_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    model = ModelSettings("m")
    with Session(settings=settings("http://example.org", model=model)) as session:
        assert session.engine.info.notes == ("the key goes to http://example.org/v1 without encryption",)
        assert "secret" not in repr(session.setting_values)
    for url in ("https://example.org", "http://127.0.0.1:9"):
        with Session(settings=settings(url, model=model)) as session:
            assert session.engine.info.notes == ()


def test_a_certificate_that_is_not_trusted_ends_the_run_at_once(grey_png: Png, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    files = (str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"))
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    with misbehaving() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with (
            Session(settings=settings(url, model=ModelSettings("m"))) as session,
            pytest.raises(ModelError, match="its certificate is not trusted"),
        ):
            session.ask(str(grey_png("a.png", 90)), "Who?")


def test_tls_to_a_server_without_it_ends_the_run_at_once(grey_png: Png) -> None:
    with misbehaving() as server, pytest.raises(ModelError, match="no TLS is spoken there"):
        run = settings(server.url.replace("http:", "https:"), model=ModelSettings("m"))
        with Session(settings=run) as session:
            session.ask(str(grey_png("a.png", 90)), "Who?")


def test_an_answer_without_end_is_not_read_to_its_end(grey_png: Png) -> None:
    with misbehaving(poisoned(Reply(200, b" " * 65_000_000))) as server:
        rows = rows_of(server, grey_png("a.png", 90), ["One?", "poison?"])
    assert rows[1].error == "endpoint: its answer is larger than 64 MB (3 tries)"


def test_generation_settings_are_sent_by_their_names(grey_png: Png) -> None:
    model = ModelSettings(
        "m", max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("END",), prompt="Q {question}"
    )
    with misbehaving(lambda *_: Reply(200, completion("Erik END and more"))) as server:
        (row,) = rows_of(server, grey_png("a.png", 90), ["Who?"], model=model)
    body = server.bodies[0]
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "seed", "stop")} == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
    }
    assert body["messages"][0]["content"][1]["text"] == "Q Who?"
    assert row.answer == "Erik"
    assert all("models" not in str(headers) for headers in server.headers)


@pytest.mark.parametrize(
    ("flag", "model"),
    [
        ("--choices", {"choices": ("Yes", "No")}),
        ("--num-beams", {"num_beams": 3}),
        ("--quantize", {"quantize": Quantize.INT8}),
        ("--adapter", {"adapter": "x"}),
        ("--min-new-tokens", {"min_new_tokens": 2}),
        ("--repetition-penalty", {"repetition_penalty": 1.2}),
        ("--batch-size", {"batch_size": 2}),
        ("--revision", {"revision": "main"}),
        ("--shortest-edge", {"shortest_edge": 200}),
        ("--device", {"device": "cpu"}),
        ("--temperature", {"temperature": 3.0}),
    ],
)
def test_settings_that_the_form_lacks_are_refused_by_name(flag: str, model: dict[str, Any]) -> None:
    with misbehaving() as server:
        with pytest.raises(UsageError, match=flag):
            Session(settings=settings(server.url, model=ModelSettings(**model)))
        assert server.headers == []


def test_the_model_is_the_only_one_or_one_that_is_named() -> None:
    several = Reply(200, {"data": [{"id": "a"}, {"id": "b"}]})
    with misbehaving(models=several) as server:
        with pytest.raises(UsageError, match="--model: a, b"):
            Session(settings=settings(server.url))
        with Session(settings=settings(server.url, model=ModelSettings("b"))) as session:
            assert session.engine.info.name == "b"
        server.models = Reply(200, {"data": [{"id": "a"}, {"id": "HuggingFaceM4/idefics2-8b"}]})
        with Session(settings=settings(server.url)) as session:
            assert session.engine.info.name == "HuggingFaceM4/idefics2-8b"
        for models, words in (
            (Reply(500, b""), "HTTP 500; --model NAME does without it"),
            (Reply(404, b"<h1>not here</h1>"), "HTTP 404: not here; give the model's name there with --model"),
            (Reply(200, b"<html>"), "no JSON"),
            (Reply(200, {"models": []}), "no data"),
            (Reply(200, {"data": [{"name": 3}, "x"]}), "lists no model"),
            (error(401, "no key"), "HTTP 401: no key$"),
        ):
            server.models = models
            with pytest.raises(ModelError, match=words):
                Session(settings=settings(server.url))


def test_the_default_model_is_asked_for_where_it_is_named() -> None:
    with misbehaving() as server:
        with Session("HuggingFaceM4/idefics2-8b", settings(server.url)) as session:
            assert session.engine.info.name == "HuggingFaceM4/idefics2-8b"
        assert server.headers == []


def test_a_list_of_models_has_bounds_and_only_names_that_can_be_shown() -> None:
    names = ["a\x1b[31m\nb", "\ud800", "", "x" * 5000, 7, "one"]
    models = Reply(200, {"data": [{"id": name} for name in names]})
    with misbehaving(models=models) as server, Session(settings=settings(server.url)) as session:
        assert session.engine.info.notes == (f"{server.url}/v1 answers with one, its only model",)
    bomb = Reply(200, gzip.compress(bytes(65_000_000)), {"content-encoding": "gzip"})
    with misbehaving(models=bomb) as server, pytest.raises(ModelError, match="larger than 64 MB"):
        Session(settings=settings(server.url)).__enter__()


def test_a_list_of_models_that_comes_byte_by_byte_has_a_time_limit() -> None:
    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True).start()
        address = read_address(f"http://127.0.0.1:{listener.getsockname()[1]}", {})
        with pytest.raises(TransientError, match=r"no answer within 0\.3 s$"):
            list_models(address, 0.3)


def test_settings_hold_address_model_and_image_size() -> None:
    with misbehaving() as server:

        def fingerprint(url: str = server.url, **model: Any) -> str:
            with Session(settings=settings(url, model=ModelSettings(**{"model": "m", **model}))) as session:
                values = session.setting_values
                assert values["--endpoint"].startswith("http://")
                return json.dumps(values)

        first = fingerprint()
        assert fingerprint(f"{server.url}/v1/") == first
        assert (
            len({first, fingerprint("http://localhost:1"), fingerprint(model="n"), fingerprint(longest_edge=500)}) == 4
        )


def test_without_logprobs_the_first_page_with_an_answer_is_taken(grey_png: Png, tmp_path: Path) -> None:
    pages = [Image.open(grey_png(f"{grey}.png", grey)) for grey in (10, 90, 200)]
    path = tmp_path / "pages.tiff"
    pages[0].save(path, save_all=True, append_images=pages[1:])

    def behave(number: int, body: dict[str, Any]) -> Reply:
        uri = body["messages"][0]["content"][0]["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as page:
            grey = page.convert("L").getpixel((9, 9))
        return Reply(200, completion({10: "not found", 90: "second", 200: "third"}[grey]))  # type: ignore[index]

    with misbehaving(behave) as server:
        (row,) = rows_of(server, path, ["Who?"], concurrency=1, pages=PageSettings(workers=1, across=Across.BEST))
    assert (row.answer, row.page, row.confidence) == ("second", "2", None)
    assert row.warning == "no log-probabilities: of 3 pages the first with an answer, not the most certain"


def test_a_line_of_a_batch_file_gets_the_log_probabilities_of_the_server(tmp_path: Path) -> None:
    def line(number: int, **fields: Any) -> str:
        body = {"messages": [{"role": "user", "content": "Who?"}], **fields}
        return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})

    questions, path = tmp_path / "batch.jsonl", tmp_path / "rows.jsonl"
    questions.write_text(f"{line(1, logprobs=True)}\n{line(2)}\n", encoding="utf-8")
    # The letter of two bytes is two tokens; the second token has no bytes.
    tokens = [
        {"token": "Er", "logprob": -0.25, "bytes": [69, 114]},
        {"token": "ik", "logprob": -0.5},
        {"token": "?", "logprob": -0.125, "bytes": [0xC3]},
        {"token": "?", "logprob": -0.125, "bytes": [0xB8]},
    ]
    said = completion("Erik\u00f8", logprobs={"content": tokens})
    with misbehaving(lambda *_: Reply(200, said)) as server:
        output = OutputSettings(path, Format.OPENAI_BATCH)
        batch.run([], str(questions), settings(server.url, output=output), io.StringIO())
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["logprobs"] for line in lines}
    assert [(token["token"], token["logprob"]) for token in found["1"]["content"]] == [
        ("Er", -0.25),
        ("ik", -0.5),
        ("\u00f8", -0.125),
    ]
    assert found["2"] is None


def test_several_pages_and_examples_are_one_conversation(grey_png: Png, tmp_path: Path) -> None:
    first, second = grey_png("a.png", 90), grey_png("b.png", 200)
    examples = tmp_path / "examples.jsonl"
    examples.write_text(json.dumps({"document": str(first), "question": "Shade?", "answer": "dark"}), encoding="utf-8")
    with misbehaving() as server:
        (row,) = rows_of(server, second, ["And this?"], asking=QuestionSettings(examples=examples))
    assert row.status == "ok"
    roles = [(message["role"], len(message["content"])) for message in server.bodies[0]["messages"]]
    assert roles == [("user", 2), ("assistant", 4), ("user", 2)]
    shown = [server.bodies[0]["messages"][at]["content"][0]["image_url"]["url"] for at in (0, 2)]
    assert shown[0] != shown[1]


def test_a_dry_run_asks_nothing(grey_png: Png) -> None:
    with misbehaving() as server:
        found = batch.dry_run([str(grey_png("a.png", 90))], asked(3), settings(server.url))
        assert server.bodies == []
    assert (found.progress.rows, found.progress.pages) == (3, 1)


def test_a_closed_engine_drops_what_is_under_way(grey_png: Png) -> None:
    page = PreparedPage((np.zeros((40, 40, 3), np.uint8),), "pillow", 0.0, 0.0)
    request = Request("q?", (page,), ("0",))
    with misbehaving(lambda *_: Reply(delay=1.0)) as server:
        engine = open_engine_of(settings(server.url))
        futures = [engine.submit(request) for _ in range(20)]
        engine.close()
        assert all(future.cancelled() for future in futures)
        with pytest.raises(ModelError, match="closed"):
            engine.submit(request).result()
