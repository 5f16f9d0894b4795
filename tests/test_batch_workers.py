"""Batch files through a server and through workers: the lines of a run by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.batch_lines import image, request, write_lines
from tests.servers import ServerProcess
from tests.test_batch_runs import lines_of, settled

RUN = [sys.executable, "-m", "idefics_cli", "run", "--model", "tiny", "--device", "cpu", "--workers", "1"]


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lines of a run by itself, over images, texts, sampling, log-probabilities and refusals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = [
        request(
            f"id-{number}", *[image(number)] * (number % 4 > 0), "Who?", max_tokens=3, temperature=number % 3 / 3,
            logprobs=number % 2 == 0, seed=None if number % 2 else number, stop=["x"] if number == 5 else None,
        )
        for number in range(8)
    ]  # fmt: skip
    write_lines(tmp_path / "b.jsonl", [*asked, request("refused", "?", n=2)])
    return ran(tmp_path / "alone.jsonl")


def ran(out: Path, *arguments: str, said: str = "") -> list[Any]:
    command = [*RUN, "-q", "b.jsonl", "-o", str(out), "--format", "openai-batch", "--verbose", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 6, done.stderr
    assert said in done.stderr
    return sorted((settled(line) for line in lines_of(out)), key=json.dumps)


def test_a_server_answers_lines_with_the_settings_of_each(
    expected: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    server = ServerProcess("--socket", "--device", "cpu", runtime=runtime)
    try:
        assert ran(tmp_path / "served.jsonl", said="answered through the server") == expected
    finally:
        server.end()
    short = ServerProcess("--socket", "--device", "cpu", "--max-answer", "100", runtime=runtime)
    try:
        assert (
            ran(tmp_path / "not-served.jsonl", said="gives no answers as long as --max-new-tokens or a request")
            == expected
        )
    finally:
        short.end()


def test_workers_answer_lines_as_one_process_does(expected: list[Any], tmp_path: Path) -> None:
    assert ran(tmp_path / "workers.jsonl", "--gpus", "2") == expected
