"""A server and the process of its engine, as processes: what becomes of one when something befalls the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.process_engines import engines_of
from tests.servers import ServerProcess, asking, events, image, until

PATH = "/v1/chat/completions"
BODY = asking("What?", image("notice.bmp"), max_tokens=4)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(*arguments: str) -> ServerProcess:
        runtime = tmp_path / "run"
        runtime.mkdir(mode=0o700)
        started.append(ServerProcess("--port", "0", *arguments, runtime=runtime))
        return started[-1]

    yield start
    for process in started:
        process.end(signal.SIGKILL)


def engine_of(server: ServerProcess) -> psutil.Process:
    (found,) = engines_of(server.pid)
    return found


def post(server: ServerProcess, body: object = BODY) -> httpx2.Response:
    return httpx2.post(f"{server.address}{PATH}", json=body, timeout=60, trust_env=False)


def held(server: ServerProcess) -> float:
    text = httpx2.get(f"{server.address}/metrics", timeout=60, trust_env=False).text
    return float(text.split("\nidefics_cli_requests_held ")[1].split()[0])


@pytest.mark.parametrize("is_busy", [True, False])
def test_an_engine_that_is_killed_ends_the_server_with_an_error(
    serving: Callable[..., ServerProcess], is_busy: bool
) -> None:
    server = serving()
    assert post(server).status_code == 200
    engine = engine_of(server)
    with ThreadPoolExecutor(3) as threads:
        if is_busy:
            engine.suspend()
        asked = [threads.submit(post, server) for _ in range(3 if is_busy else 0)]
        until(lambda: held(server) == len(asked))
        engine.kill()
        for one in asked:
            reply = one.result()
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unavailable")
            assert "the engine's process has ended: killed by SIGKILL" in reply.json()["error"]["message"]
    assert server.end(0) == 4
    until(lambda: "error" in server.said[-1])
    assert "the engine's process has ended: killed by SIGKILL" in server.said[-1]


def test_a_server_that_is_killed_takes_its_engine_with_it(serving: Callable[..., ServerProcess]) -> None:
    server = serving()
    engine = engine_of(server)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    _, alive = psutil.wait_procs([engine], timeout=5)
    assert alive == []


def test_a_signal_to_all_processes_of_a_service_lets_it_answer_what_was_asked(
    serving: Callable[..., ServerProcess],
) -> None:
    server = serving()
    engine = engine_of(server)
    assert post(server).status_code == 200
    with ThreadPoolExecutor(1) as threads:
        engine.suspend()
        asked = threads.submit(post, server, BODY | {"stream": True})
        until(lambda: held(server) == 1)
        engine.send_signal(signal.SIGTERM)
        os.kill(server.pid, signal.SIGTERM)
        engine.resume()
        assert events(asked.result().text)[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.end(0) == 0
    assert not engine.is_running()


def test_weights_that_are_let_go_take_the_process_with_them(serving: Callable[..., ServerProcess]) -> None:
    server = serving("--keep-alive", "1s")
    first = engine_of(server)
    answer = post(server).json()["choices"]
    until(lambda: not engines_of(server.pid))
    assert post(server).json()["choices"] == answer
    assert engine_of(server).pid != first.pid


def test_the_server_itself_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from idefics_cli.config import PageSettings, ServeSettings, ModelSettings\n"
        "from tests.servers import asking, image, running\n"
        "with running() as (server, client):\n"
        "    for stream in (False, True):\n"
        f"        reply = client.post({PATH!r}, json=asking('What?', image('notice.bmp'), logprobs=True, stream=stream))\n"
        "        assert reply.status_code == 200\n"
        "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert found.stdout == "[]\n", found.stderr
