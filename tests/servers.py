"""Servers of tests: in a thread of this process, or as a process of their own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2

from idefics_cli.config import ModelSettings, PageSettings, ServeSettings
from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineStats
from idefics_cli.engine_process.parent import open_in_process
from idefics_cli.records import Answer, GeneratedTokens, Request
from idefics_cli.server.serving import Server, ServerSettings
from tests.fakes import FakeEngine

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"
_SECONDS = 60.0


class ServedEngine(FakeEngine):
    """Answers what it is asked; `wait` in the question does so when `gate` opens, and tells a token before."""

    def __init__(self) -> None:
        super().__init__(capacity=64)
        self.gate = threading.Event()
        self.waiting = 0
        self.withdrawn = 0
        self.requests: list[Request] = []

    @property
    def stats(self) -> EngineStats:
        return EngineStats(0, self.waiting)

    def submit(self, request: Request) -> Future[Answer]:
        self.requests.append(request)
        if "wait" not in request.question:
            return super().submit(request)
        future: Future[Answer] = Future()
        self.waiting += 1
        future.add_done_callback(self._left)
        threading.Thread(target=self._answer_later, args=(request, future), daemon=True).start()
        return future

    def _answer_later(self, request: Request, future: Future[Answer]) -> None:
        if request.on_tokens is not None:
            request.on_tokens(GeneratedTokens((1,), (-0.5,), lambda ids: "w" * len(ids)))
        self.gate.wait()
        if future.set_running_or_notify_cancel():
            future.set_result(Answer("www", 0.5, -0.5, 10, 3))

    def _left(self, future: Future[Answer]) -> None:
        self.waiting -= 1
        self.withdrawn += future.cancelled()


@contextlib.contextmanager
def running(
    serve: ServeSettings | None = None,
    *,
    model: ModelSettings | None = None,
    open_with: Callable[[ModelSettings], DeferredEngine] | None = None,
    **settings: Any,
) -> Iterator[tuple[Server, httpx2.Client]]:
    """Run a server in a thread, its engine in a process or as `open_with` opens it; yields it and a client of it."""
    settings.setdefault("pages", PageSettings(workers=2))
    ready: Future[str] = Future()
    server = Server(
        ServerSettings(model or ModelSettings("tiny"), serve=serve or ServeSettings(port=0), **settings),
        open_with=(lambda settings, **_: open_with(settings)) if open_with else open_in_process,
        on_ready=ready.set_result,
    )
    ended: Future[bool] = Future()

    def run() -> None:
        try:
            ended.set_result(server.run())
        except BaseException as error:
            ended.set_exception(error)
            if not ready.done():
                ready.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    address = ready.result(_SECONDS).split("/v1")[0]
    try:
        with httpx2.Client(base_url=address, timeout=_SECONDS, trust_env=False) as client:
            yield server, client
    finally:
        server.stop()
        thread.join(_SECONDS)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving_fake(
    serve: ServeSettings | None = None, **settings: Any
) -> Iterator[tuple[Server, httpx2.Client, ServedEngine]]:
    """Run a server with the fake engine."""
    engine = ServedEngine()
    with running(serve, open_with=lambda _: DeferredEngine(engine.info, lambda _: engine), **settings) as (
        server,
        client,
    ):
        try:
            yield server, client, engine
        finally:
            engine.gate.set()


class ServerProcess:
    """`idefics-cli serve` in a process of its own, on a free port."""

    def __init__(self, *arguments: str, runtime: Path, model: str = "tiny", **variables: str) -> None:
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), **variables}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "idefics_cli", "serve", "--model", model, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        self.said: list[str] = []
        self._is_ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._is_ready.wait(_SECONDS), self.said

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        """Of HTTP."""
        found = re.search(r"http://[^/]*", "".join(self.said))
        assert found
        return found[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return self._process.wait(_SECONDS)

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self.said.append(line)
            if "answers at" in line:
                self._is_ready.set()
        self._is_ready.set()


def data_uri(name: str, kind: str = "image/png") -> str:
    """Return a sample document as a data URI."""
    return f"data:{kind};base64,{base64.b64encode((SAMPLES / name).read_bytes()).decode()}"


def image(name: str) -> dict[str, Any]:
    """Return a sample image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_uri(name)}}


def asking(question: str, *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the body of a request with one turn."""
    content = [*parts, {"type": "text", "text": question}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


def events(text: str) -> list[Any]:
    """Return the bodies of server-sent events; the last one must be the end."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def until(is_true: Callable[[], bool]) -> None:
    """Wait for something that must come to be."""
    deadline = time.monotonic() + _SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
