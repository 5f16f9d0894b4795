"""What a server holds at most, who may ask it, who leaves it, and how it ends; over the fake engine."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from idefics_cli.config import Duration, ModelSettings, ServeSettings
from idefics_cli.engine import DeferredEngine
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Request
from idefics_cli.server.serving import Server
from tests.servers import ServedEngine, ServerProcess, asking, events, image, running, serving_fake, until

PATH = "/v1/chat/completions"
Served = tuple[Server, httpx2.Client, ServedEngine]


@pytest.fixture
def served() -> Iterator[Served]:
    with serving_fake(ServeSettings(port=0, max_body=2.0, max_queue=8)) as found:
        yield found


def connected(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)


def head(length: int, *more: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_too_large_a_body_is_refused_by_its_length_before_it_is_sent(served: Served) -> None:
    _, client, _ = served
    with connected(client) as stream:
        stream.sendall(head(100_000_000))
        assert stream.recv(64).startswith(b"HTTP/1.1 413 ")
    reply = client.post(PATH, content=b"x" * 5_000_000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    grown = client.post(PATH, content=(b"x" * 100_000 for _ in range(50)))  # in chunks: no length is said
    assert grown.status_code == 413
    assert client.post(PATH, json=asking("What?", image("notice.bmp"))).status_code == 200


def test_a_key_is_wanted_and_compared() -> None:
    with serving_fake(api_key="s3cret") as (_, client, engine):
        body = asking("What?", image("notice.bmp"))
        for headers in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer \u00e9"},
        ):
            sent = httpx2.Headers([(name.encode(), value.encode()) for name, value in headers.items()])
            reply = client.post(PATH, json=body, headers=sent)
            assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
            assert client.get("/metrics").status_code == client.get("/v1/models").status_code == 401
        assert engine.requests == []
        assert client.get("/health").status_code == 200
        right = {"Authorization": "Bearer s3cret"}
        assert client.post(PATH, json=body, headers=right).status_code == 200
        assert "s3cret" not in client.get("/metrics", headers=right).text


def test_a_full_server_says_when_to_come_again_and_answers_those_it_holds(served: Served) -> None:
    server, client, engine = served
    body = asking("wait", image("notice.bmp"))
    with ThreadPoolExecutor(8) as threads:
        held = [threads.submit(client.post, PATH, json=body) for _ in range(8)]
        until(lambda: engine.waiting == 8)
        refused = client.post(PATH, json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 0
        engine.gate.set()
        assert [one.result().status_code for one in held] == [200] * 8
    until(lambda: server.admission.held == 0)
    assert client.post(PATH, json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_sequence(served: Served, stream: bool) -> None:
    server, client, engine = served
    body = json.dumps(asking("wait", image("notice.bmp"), stream=stream)).encode()
    for count in range(1, 4):
        with connected(client) as connection:
            connection.sendall(head(len(body)) + body)
            until(lambda: engine.waiting == 1)
            if stream:
                assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
        until(lambda: engine.waiting == 0)
        assert engine.withdrawn == count
    until(lambda: server.admission.held == 0)
    assert 'idefics_cli_requests_total{status="499"} 3.0' in client.get("/metrics").text or stream


def test_clients_that_leave_at_any_moment_leave_nothing_behind(served: Served) -> None:
    server, client, engine = served
    body = json.dumps(asking("wait", image("notice.bmp"))).encode()
    whole = head(len(body)) + body
    for sent in (0, 10, len(whole) // 2, len(whole) - 1, len(whole)):
        for _ in range(3):
            with connected(client) as connection:
                connection.sendall(whole[:sent])
    until(lambda: client.post(PATH, json=asking("What?", image("notice.bmp"))).status_code == 200)
    until(lambda: server.admission.held == engine.waiting == 0)
    assert engine.withdrawn <= 3  # only those whose bodies were whole


def test_a_hundred_connections_at_once_are_all_answered(served: Served) -> None:
    _, client, _ = served
    body = asking("What?", image("notice.bmp"))

    async def all_at_once() -> list[int]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=client.base_url, limits=limits, timeout=60, trust_env=False) as clients:
            replies = await asyncio.gather(*(clients.post(PATH, json=body) for _ in range(100)))
        return [reply.status_code for reply in replies]

    codes = asyncio.run(all_at_once())
    assert set(codes) <= {200, 429}
    assert 200 in codes


def test_requests_that_are_held_are_answered_when_the_server_stops_and_new_ones_refused(served: Served) -> None:
    server, client, engine = served
    with ThreadPoolExecutor(2) as threads, connected(client) as later:
        later.sendall(head(10)[:-2])  # a connection that is there already
        whole = threads.submit(client.post, PATH, json=asking("wait", image("notice.bmp")))
        stream = threads.submit(client.post, PATH, json=asking("wait", image("notice.bmp"), stream=True))
        until(lambda: engine.waiting == 2)
        server.stop()
        until(lambda: server.admission.is_stopping)
        later.sendall(b"\r\n0123456789")
        assert later.recv(64).startswith(b"HTTP/1.1 503 ")
        engine.gate.set()
        assert whole.result().json()["choices"][0]["message"]["content"] == "www"
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in events(stream.result().text)) == "www"


def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    with serving_fake(ServeSettings(port=0, stop_timeout=0.2)) as (server, client, engine):
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(client.post, PATH, json=asking("wait", image("notice.bmp")))
            until(lambda: engine.waiting == 1)
            server.stop()
            assert asked.result().status_code == 503
        until(lambda: engine.withdrawn == 1)


@pytest.mark.parametrize("sent", [100, 200_000])
def test_a_body_on_its_way_is_refused_when_the_server_stops(sent: int) -> None:
    with serving_fake(ServeSettings(port=0, stop_timeout=0.2)) as (server, client, _):
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0), 20) as slow:
            slow.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n".encode() + b" " * sent)
            until(lambda: server.admission.held == 1)
            server.stop()
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"stopping"' in answer


def test_failures_have_the_codes_that_clients_go_by(served: Served) -> None:
    _, client, _ = served
    reply = client.post(PATH, json=asking("fail", image("notice.bmp")))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "model_error")
    stream = client.post(PATH, json=asking("fail", image("notice.bmp"), stream=True))
    assert stream.status_code == 500


def test_weights_that_cannot_be_loaded_end_the_server_at_once() -> None:
    def fail(_: object) -> ServedEngine:
        raise ModelError("no such weights, says the loader")

    with (
        pytest.raises(ModelError, match="no such weights"),
        running(open_with=lambda _: DeferredEngine(ServedEngine().info, fail)),
    ):
        pass


def test_a_device_that_fails_ends_the_server_with_an_error() -> None:
    class Failing(ServedEngine):
        def answer(self, request: Request):  # type: ignore[no-untyped-def]
            raise ModelError("the GPU failed and can't go on")

    engine = Failing()
    with running(open_with=lambda _: DeferredEngine(engine.info, lambda _: engine)) as (server, client):
        reply = client.post(PATH, json=asking("What?", image("notice.bmp")))
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")
        until(lambda: server.failure is not None)


def test_where_it_cannot_listen_is_a_usage_error() -> None:
    elsewhere = ServeSettings(host="192.0.2.1", port=0)
    with serving_fake() as (_, client, _):
        taken = ServeSettings(port=client.base_url.port or 0)
        with pytest.raises(UsageError, match="--port 0"), serving_fake(taken):
            pass
    # An address of documentation, which no machine has: another port would not help.
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1 --port 0: [^;]*$"), serving_fake(elsewhere):
        pass


def test_weights_go_when_nothing_is_asked_and_come_back_with_the_next_request() -> None:
    serve = ServeSettings(port=0, keep_alive=Duration(0.3))
    with running(serve, model=ModelSettings("tiny", max_new_tokens=4)) as (_, client):
        body = asking("What?", image("notice.bmp"))
        first = client.post(PATH, json=body).json()["choices"]
        until(lambda: not client.get("/health").json()["loaded"])
        assert client.post(PATH, json=body).json()["choices"] == first


def test_a_server_that_ends_when_it_is_idle_ends() -> None:
    serve = ServeSettings(port=0, keep_alive=Duration(0.2), exit_when_idle=True)
    with serving_fake(serve) as (server, client, _):
        client.post(PATH, json=asking("What?", image("notice.bmp")))
        until(lambda: server.admission.is_stopping)


def test_requests_that_fail_leave_no_garbage_that_holds_their_bodies(served: Served) -> None:
    _, client, _ = served
    whole = json.dumps(asking("What?", image("notice.bmp"))).encode()
    broken = [whole[: len(whole) // 2], whole.replace(b"png;base64,", b"png;base64,!")]
    for content in broken:
        client.post(PATH, content=content)
    gc.collect()
    gc.disable()
    try:
        codes = [client.post(PATH, content=content).status_code for content in broken * 20]
        unreachable = gc.collect()
    finally:
        gc.enable()
    assert set(codes) == {400}
    assert unreachable < 40 * len(codes)  # an error with its frames, and what they hold, is a hundred


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_clients_sent_is_left_behind(number: int, tmp_path: Path) -> None:
    temporary, runtime = tmp_path / "tmp", tmp_path / "run"
    temporary.mkdir()
    runtime.mkdir(mode=0o700)
    process = ServerProcess("--port", "0", runtime=runtime, TMPDIR=str(temporary))
    body = asking("What?", image("notice.bmp"), max_tokens=2)
    assert httpx2.post(f"{process.address}{PATH}", json=body, timeout=60, trust_env=False).status_code == 200
    assert list(temporary.iterdir())
    assert process.end(number) == (0 if number == signal.SIGTERM else -number)
    until(lambda: not list(temporary.rglob("*")))


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_both_parsers_of_http_do_the_same(parser: str, tmp_path: Path) -> None:
    if parser == "httptools":
        pytest.importorskip("httptools")
    else:
        (tmp_path / "httptools.py").write_text("raise ImportError('it is not installed')")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    path = os.pathsep.join(filter(None, [str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    process = ServerProcess("--port", "0", "--max-body", "2", runtime=runtime, PYTHONPATH=path)
    url = httpx2.URL(process.address)
    body = json.dumps(asking("What?", image("notice.bmp"), max_tokens=2)).encode()
    try:
        with socket.create_connection((url.host, url.port), timeout=60) as early:
            early.sendall(head(100_000_000))
            assert early.recv(64).startswith(b"HTTP/1.1 413 ")
        with socket.create_connection((url.host, url.port), timeout=60) as early:
            early.sendall(head(100_000_000, "Expect: 100-continue"))
            assert early.recv(64).startswith(b"HTTP/1.1 413 ")
        with socket.create_connection((url.host, url.port), timeout=60) as polite:
            polite.sendall(head(len(body), "Expect: 100-continue", "Connection: close"))
            assert polite.recv(64).startswith(b"HTTP/1.1 100 ")
            polite.sendall(body)
            assert polite.recv(64).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection((url.host, url.port), timeout=60) as kept:
            for _ in range(3):
                kept.sendall(head(len(body)) + body[:1000])
                kept.sendall(body[1000:])
                assert b"idefics_cli" in answer_of(kept)
            kept.sendall(b"no HTTP\r\n\r\n")
            assert kept.recv(64).startswith(b"HTTP/1.1 400 ")
        with httpx2.Client(base_url=process.address, timeout=60, trust_env=False) as client:
            assert client.post(PATH, content=(b"x" * 100_000 for _ in range(50))).status_code == 413
            whole = client.post(PATH, content=body).json()
            chunks = events(client.post(PATH, content=body[:-1] + b', "stream": true}').text)
        told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert told == whole["choices"][0]["message"]["content"]
    finally:
        assert process.end() == 0


def answer_of(connection: socket.socket) -> bytes:
    """Read a response whose length is told; returns its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    told, _, body = received.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b":")[1]) for line in told.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < length:
        body += connection.recv(4096)
    return body
