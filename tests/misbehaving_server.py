"""A small real HTTP server of the OpenAI form that does to each request what a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a request gets: nothing but a closed connection where there is no status."""

    status: int | None = 200
    body: object = None
    """JSON, or bytes as they are; None is a completion that answers the question."""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


OK = Reply()
DROP = Reply(None)
Behave = Callable[[int, dict[str, Any]], Reply]
"""From the number of a chat completion, from 1, and its body."""


def question_of(body: Mapping[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 3, "total_tokens": 93},
    }


def error(status: int, message: str, **fields: Any) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "x", **fields}})


class MisbehavingServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave: Behave, models: Reply, port: int = 0) -> None:
        self.behave, self.models = behave, models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MisbehavingServer

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self._reply(self.server.models if self.path == "/v1/models" else Reply(404, b"not here"), {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(server.bodies)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            wanted = server.behave(number, body) if self.path == "/v1/chat/completions" else Reply(404, b"not here")
            self._reply(wanted, body)
        finally:
            with server.lock:
                server.at_once -= 1

    def _reply(self, wanted: Reply, body: Mapping[str, Any]) -> None:
        time.sleep(wanted.delay)
        if wanted.status is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = completion(f"{question_of(body)} answered") if wanted.body is None else wanted.body
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        with contextlib.suppress(OSError):
            self.send_response(wanted.status)
            for name, value in wanted.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def misbehaving(
    behave: Behave = lambda *_: OK,
    models: Reply = Reply(200, {"data": [{"id": "served"}]}),
    port: int = 0,
) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(behave, models, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
