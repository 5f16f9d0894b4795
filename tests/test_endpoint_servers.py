"""`run` and `ask` with --endpoint through real servers, as processes: ours, and that of transformers."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.records import COLUMNS
from tests.conftest import SAMPLES, Run
from tests.misbehaving_server import OK, Reply, error, misbehaving
from tests.servers import ServerProcess

EDGE = ("--longest-edge", "490")  # of the tiny model
_START_SECONDS = 120.0


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IDEFICS_CLI_API_KEY", "OPENAI_API_KEY", "IDEFICS_CLI_MODEL"):
        monkeypatch.delenv(name, raising=False)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_questions(path: Path, count: int | None = None) -> list[dict[str, str]]:
    """Write questions of the samples, each document named in full; returns them."""
    asked = read(SAMPLES / "questions.csv")[:count]
    asked = [{**row, "document": str(SAMPLES / row["document"].removeprefix("samples/"))} for row in asked]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(asked[0]))
        writer.writeheader()
        writer.writerows(asked)
    return asked


def test_rows_through_our_server_are_those_of_the_model_here(cli: Run, tmp_path: Path) -> None:
    """With pages split and whole, as the server decides by the pages that it gets."""
    questions = tmp_path / "questions.csv"
    write_questions(questions, 8)
    there, here = tmp_path / "there.csv", tmp_path / "here.csv"
    server = ServerProcess("--port", "0", runtime=tmp_path / "runtime")
    try:
        done = cli("run", "-q", questions, "-o", there, "--endpoint", server.address, *EDGE)
    finally:
        assert server.end() == 0
    assert done.returncode == 0, done.stderr
    assert "answers with tiny, its only model" in done.stderr
    done = cli("run", "-q", questions, "-o", here, "--model", "tiny", "--no-server")
    assert done.returncode == 0, done.stderr
    same = (
        "document",
        "page",
        "question",
        "answer",
        "warning",
        "status",
        "model",
        "key",
        "prompt_tokens",
        "new_tokens",
    )
    for through, local in zip(read(there), read(here), strict=True):
        assert [through[name] for name in same] == [local[name] for name in same]
        assert float(through["confidence"]) == pytest.approx(float(local["confidence"]), abs=2e-3)
        assert float(through["decode_ms"]) > 0
        assert through["settings"] != local["settings"]


def test_a_server_that_is_killed_and_started_again_costs_no_row(tmp_path: Path) -> None:
    questions, output = tmp_path / "questions.csv", tmp_path / "rows.csv"
    asked = write_questions(questions, 40)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = ServerProcess("--port", port, "--split", "never", runtime=tmp_path / "runtime")
    words = ["run", "-q", str(questions), "-o", str(output), "--endpoint", server.address, *EDGE, "--concurrency", "2"]
    run = subprocess.Popen([sys.executable, "-m", "idefics_cli", *words], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (output.exists() and len(read(output)) >= 3):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.end(signal.SIGKILL)
        assert len(read(output)) < len(asked)
        server = ServerProcess("--port", port, "--split", "never", runtime=tmp_path / "runtime")
        _, said = run.communicate(timeout=_START_SECONDS)
    finally:
        run.kill()
        server.end()
    assert run.returncode == 0, said
    rows = read(output)
    assert [row["question"] for row in rows] == [row["question"] for row in asked]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["answer"] for row in rows)


def test_ask_prints_answers_and_one_that_is_gone_is_exit_4(cli: Run) -> None:
    document = SAMPLES / "documents" / "letter.pdf"
    with misbehaving() as server:
        words = ("ask", document, "Who?", "--endpoint", server.url)
        done = cli(*words)
        assert (done.returncode, done.stdout) == (0, "Who? answered\n"), done.stderr
        row = json.loads(cli(*words, "--json", "--verbose").stdout)
        assert list(row) == list(COLUMNS)
        chat = cli("ask", "--chat", document, "Who?", "--endpoint", server.url, stdin="When?\n")
        assert chat.stdout == "Who? answered\nWhen? answered\n"
        assert [message["role"] for message in server.bodies[-1]["messages"]] == ["user", "assistant", "user"]
        server.behave = lambda *_: error(400, "no")
        assert cli(*words).returncode == 6
        url = server.url
    done = cli("ask", document, "Who?", "--endpoint", url, "--model", "m", "--give-up-after", "1s")
    assert (done.returncode, done.stdout) == (4, "")
    assert "no request has passed for 1 s" in done.stderr
    done = cli("ask", document, "Who?", "--endpoint", url)
    assert done.returncode == 4
    assert "--model NAME does without it" in done.stderr


def test_a_chat_says_which_model_answers_and_a_model_that_is_named_is_asked(cli: Run) -> None:
    document, default = SAMPLES / "documents" / "letter.pdf", "HuggingFaceM4/idefics2-8b"
    with misbehaving() as server:
        words = ("ask", document, "Who?", "--endpoint", server.url)
        chat = cli(*words, "--chat", stdin="")
        assert (chat.returncode, chat.stdout) == (0, "Who? answered\n"), chat.stderr
        assert chat.stderr == f"note: {server.url}/v1 answers with served, its only model\n"
        done = cli(*words, "--model", default)
        assert (done.returncode, done.stderr) == (0, "")
        assert [body["model"] for body in server.bodies] == ["served", default]


def test_shards_of_a_server_are_merged_and_not_with_those_of_the_model_here(cli: Run, tmp_path: Path) -> None:
    documents, questions = [tmp_path / f"{grey}.png" for grey in range(0, 240, 40)], tmp_path / "q.jsonl"
    for path in documents:
        Image.new("RGB", (80, 60), (int(path.stem),) * 3).save(path)
    names = [path.name for path in documents]
    asked: list[dict[str, object]] = [{"question": "Which?", "document": name} for name in names]
    asked.append({"question": "Which of them?", "documents": [names[0], {"document": names[1], "page": "1"}]})
    turns = [("user", [{"type": "image", "path": names[2]}, {"type": "text", "text": "Shade?"}]), ("assistant", "80")]
    turns.append(("user", [{"type": "text", "text": "And?"}]))
    asked.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    questions.write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    parts, merged, here = [tmp_path / f"{at}.csv" for at in (1, 2)], tmp_path / "all.csv", tmp_path / "here.csv"
    with misbehaving() as server:
        for at, path in enumerate(parts, 1):
            words = ("run", "-q", questions, "-o", path, "--shard", f"{at}/2", "--endpoint", server.url)
            assert cli(*words).returncode == 0
    done = cli("merge", *parts, "-o", merged, "-q", questions, "--shards", "2")
    assert done.returncode == 0, done.stderr
    assert all(read(path) for path in parts)
    done = cli("run", "-q", questions, "-o", here, "--model", "tiny", "--no-server", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    same = ("document", "page", "question", "key", "status")
    assert [[row[name] for name in same] for row in read(merged)] == [
        [row[name] for name in same] for row in read(here)
    ]
    done = cli("merge", parts[0], here, "-o", tmp_path / "mixed.csv")
    assert done.returncode == 3
    assert "answered with other settings" in done.stderr


def test_run_ends_with_4_when_the_server_is_gone_and_resume_goes_on(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    words = ["run", str(SAMPLES / "documents" / "letter.pdf"), "-o", str(output), "--resume", "--concurrency", "2"]
    words += [word for number in range(12) for word in ("--ask", f"Question {number}?")]
    with misbehaving(lambda number, _: OK if number <= 5 else Reply(503, b"gone")) as server:
        done = cli(*words, "--endpoint", server.url, "--give-up-after", "1s")
        assert done.returncode == 4, done.stderr
        assert len(read(output)) == 5
        server.behave = lambda *_: OK
        done = cli(*words, "--endpoint", server.url)
        assert done.returncode == 0, done.stderr
        other = cli(*words, "--endpoint", f"{server.url}/other/v1", "--model", "served")
    # Those that were answered out of order before the end stand first.
    assert sorted(row["answer"] for row in read(output)) == sorted(f"Question {at}? answered" for at in range(12))
    assert other.returncode == 5, other.stderr
    assert "--endpoint" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "localhost:8000"], "takes an address"),
        (["--concurrency", "3"], "--concurrency goes with --endpoint"),
        (["--endpoint", "http://127.0.0.1:9", "--choices", "Yes,No"], "--choices"),
        (["--endpoint", "http://127.0.0.1:9", "--quantize", "int8"], "--quantize"),
        (["--endpoint", "http://127.0.0.1:9", "--gpus", "2"], "--gpus and --endpoint"),
        (["--endpoint", "http://127.0.0.1:9", "--ray", "auto"], "--ray and --endpoint"),
        (["--endpoint", "http://127.0.0.1:9", "--no-server"], "--no-server loads the model here"),
        (["--endpoint", "http://127.0.0.1:9/\udcff"], "--endpoint is not UTF-8"),
        (["--endpoint", "http://127.0.0.1:9", "--model", "\udcff"], "--model with --endpoint is not UTF-8"),
        (["--prompt", "{question}\udcff"], "--prompt is not UTF-8"),
        (["--stop", "\udcff"], "--stop is not UTF-8"),
        (["--choices", "a,\udcff"], "--choices is not UTF-8"),
        (["--endpoint", "http://127.0.0.1:9", "--give-up-after", "x"], "90s, 10m"),
    ],
)
def test_options_that_contradict_are_refused(cli: Run, arguments: list[str], words: str) -> None:
    done = cli("run", SAMPLES / "documents" / "letter.pdf", "--ask", "Who?", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_the_package_the_remedy_is_named(tmp_path: Path) -> None:
    start = "import sys, importlib.machinery as m; f = m.PathFinder.find_spec; "
    start += "m.PathFinder.find_spec = classmethod(lambda c, n, *a: None if n == 'httpx2' else f(n, *a)); "
    start += "from idefics_cli.cli.app import main; main()"
    words = ["ask", str(SAMPLES / "documents" / "letter.pdf"), "Who?", "--endpoint", "http://127.0.0.1:9"]
    done = subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr
    assert "pip install 'idefics-cli[endpoint]'" in done.stderr


@pytest.fixture
def whole_tiny(tmp_path: Path) -> Path:
    """The tiny model in a folder, whose processor leaves pages whole."""
    folder = tmp_path / "tiny-whole"
    shutil.copytree(SAMPLES / "tiny-idefics2", folder)
    file = folder / "processor_config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r'("do_image_splitting": )true', r"\1false", text), encoding="utf-8")
    assert text != file.read_text(encoding="utf-8")
    return folder


@pytest.fixture
def transformers_serve() -> Iterator[str]:
    """The address of `transformers serve`; skips where it can't start."""
    command = Path(sys.executable).parent / "transformers"
    for package in ("fastapi", "uvicorn", "accelerate"):
        pytest.importorskip(package)
    if not command.exists():
        pytest.skip("there is no command transformers")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words: Sequence[str] = (
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    process = subprocess.Popen(
        [str(command), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip("transformers serve does not start here")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_rows_through_transformers_serve_are_those_of_the_model_here(
    cli: Run, tmp_path: Path, whole_tiny: Path, transformers_serve: str
) -> None:
    questions, there, here = tmp_path / "questions.csv", tmp_path / "there.csv", tmp_path / "here.csv"
    write_questions(questions)
    words = ("run", "-q", questions, "--split", "never", "--model", whole_tiny)
    done = cli(*words, "-o", there, "--endpoint", transformers_serve, *EDGE)
    assert done.returncode == 0, done.stderr
    done = cli(*words, "-o", here, "--no-server")
    assert done.returncode == 0, done.stderr
    same = ("document", "page", "question", "answer", "status", "key", "prompt_tokens", "new_tokens")
    rows = read(there)
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in read(here)]
    assert {row["confidence"] for row in rows} == {""}
