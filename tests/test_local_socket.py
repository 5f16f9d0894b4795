"""`ask` and `run` through a server: the answers and keys of those without one, whatever becomes of the server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import Dtype, Kernels, ModelSettings, RunSettings
from idefics_cli.local_socket.client import find_server
from idefics_cli.local_socket.folder import connect, listen, make_folder, socket_folder, sockets
from tests.servers import SAMPLES, ServerProcess, until

LETTER = str(SAMPLES / "letter.pdf")
TO_WHOM = "To whom is the letter addressed?"
TIMES = {"raster_ms", "prepare_ms", "vision_ms", "prefill_ms", "decode_ms", "latency_ms", "answered_at", "batch_size"}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def server(runtime: Path) -> Iterator[ServerProcess]:
    process = ServerProcess("--socket", runtime=runtime)
    yield process
    process.end()


def command(*arguments: str | Path, runtime: Path, cwd: Path | None = None, stdin: str = "") -> Any:
    return subprocess.run(
        [sys.executable, "-m", "idefics_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or SAMPLES.parent.parent,
        input=stdin,
        timeout=120,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "IDEFICS_CLI_MODEL": "tiny", "NO_COLOR": "1"},
    )


def without_times(lines: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines.splitlines()
    ]


ASKED: list[list[str]] = [
    [LETTER, TO_WHOM],
    [LETTER, "samples/documents/archive", "-q", TO_WHOM, "-q", "What is the date?"],
    ["samples/documents/fax.tiff", "What is the date?", "--across", "each"],
    ["samples/documents/fax.tiff", "What is the date?", "--pages", "2,1", "--across", "together"],
    ["--together", LETTER, "samples/documents/notice.bmp", "What is the date?"],
    [
        "samples/documents/notice.bmp",
        "What is the date?",
        "--temperature",
        "1.2",
        "--seed",
        "7",
        "--max-new-tokens",
        "9",
    ],
    ["samples/documents/notice.bmp", "What is the date?", "--stop", "2", "--split", "always"],
    ["samples/documents/notice.bmp", "What is the date?", "--examples", "{examples}"],
    ["samples/documents/no-pages.pdf", "What?"],
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: " ".join(asked)[-50:])
def test_rows_are_those_without_a_server(
    asked: list[str], server: ServerProcess, runtime: Path, tmp_path: Path
) -> None:
    examples = tmp_path / "examples.csv"
    examples.write_text(f"document,question,answer\n{LETTER},{TO_WHOM},Erik Kansfield\n")
    asked = [word.format(examples=examples) for word in asked]
    if "no-pages" in asked[0]:
        asked[0] = str(tmp_path / "no-pages.pdf")
        Path(asked[0]).write_bytes(b"%PDF-1.4 nothing")
    through = command("ask", "--json", "-v", *asked, runtime=runtime)
    here = command("ask", "--json", "--no-server", *asked, runtime=runtime)
    assert through.returncode == here.returncode
    assert f"answered through the server at {runtime}" in through.stderr
    assert without_times(through.stdout) == without_times(here.stdout) != []


@pytest.mark.parametrize("asked", [*ASKED[1:3], ASKED[-1]], ids=["several", "each page", "failed"])
def test_what_is_printed_is_that_without_a_server(
    asked: list[str], server: ServerProcess, runtime: Path, tmp_path: Path
) -> None:
    if "no-pages" in asked[0]:
        asked = [str(tmp_path / "no-pages.pdf"), *asked[1:]]
        Path(asked[0]).write_bytes(b"%PDF-1.4 nothing")
    through, here = (command("ask", *more, *asked, runtime=runtime) for more in ([], ["--no-server"]))
    assert (through.stdout, through.stderr, through.returncode) == (here.stdout, here.stderr, here.returncode)


def test_a_run_writes_the_rows_that_it_writes_without_a_server(
    server: ServerProcess, runtime: Path, tmp_path: Path
) -> None:
    found = []
    for name, more in (("through", ["-v"]), ("here", ["--no-server"])):
        output = tmp_path / f"{name}.jsonl"
        asked = ("run", "samples/documents", "-q", "samples/questions.csv", "-o", output, "--split", "never")
        done = command(*asked, *more, "--limit", "20", runtime=runtime)
        assert done.returncode == 0, done.stderr
        assert ("answered through the server" in done.stderr) == (name == "through")
        done = command(*asked, *more, "--resume", runtime=runtime)
        assert done.returncode in (0, 6), done.stderr
        found.append(sorted(without_times(output.read_text()), key=lambda row: (row["key"], row["page"])))
    assert found[0] == found[1]
    assert len(found[0]) > 60


def test_a_pipe_is_answered_line_by_line(server: ServerProcess, runtime: Path) -> None:
    line = json.dumps({"document": LETTER, "question": TO_WHOM}) + "\n"
    arguments = [sys.executable, "-m", "idefics_cli", "run", "-q", "-", "-o", "-", "--format", "jsonl"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "IDEFICS_CLI_MODEL": "tiny"}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(3):
            process.stdin.write(line)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["answer"] == "Erik Kansfield"
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_chat_goes_on_through_the_server(server: ServerProcess, runtime: Path) -> None:
    asked = ("ask", "--chat", "--json", LETTER, TO_WHOM)
    through = command(*asked, "-v", runtime=runtime, stdin="Who signed the letter?\n\n")
    here = command(*asked, "--no-server", runtime=runtime, stdin="Who signed the letter?\n\n")
    assert "answered through the server" in through.stderr
    assert without_times(through.stdout) == without_times(here.stdout)
    assert len(through.stdout.splitlines()) == 2


def test_who_only_asks_imports_neither_torch_nor_what_opens_documents(server: ServerProcess, runtime: Path) -> None:
    script = (
        "import atexit, sys\n"
        "from idefics_cli.cli import app\n"
        "def told(code):\n"
        "    heavy = {'torch', 'PIL', 'pypdfium2', 'numpy', 'pandas', 'transformers', 'idefics_cli.engine'}\n"
        "    print(code, sorted(heavy & set(sys.modules)))\n"
        "app.exit_process = told\n"
        f"sys.argv = ['idefics-cli', 'ask', {LETTER!r}, {TO_WHOM!r}]\n"
        "app.main()\n"
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "IDEFICS_CLI_MODEL": "tiny"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("Erik Kansfield\n", "0 []\n")  # stdout is for answers alone


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"dtype": Dtype.BFLOAT16}, "--dtype"),
        ({"prompt": "{question} Now."}, "--prompt"),
        ({"longest_edge": 300}, "--longest-edge"),
        ({"choices": ("Yes", "No")}, "--choices"),
        ({"repetition_penalty": 1.2}, "--repetition-penalty"),
        ({"max_new_tokens": 2000}, "--max-new-tokens"),
        ({"kernels": Kernels.OFF}, "--kernels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_that_would_answer_otherwise_is_not_used(
    changed: dict[str, Any], why: str, server: ServerProcess, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    said: list[str] = []
    assert find_server(RunSettings(model=ModelSettings("tiny", **changed)), said.append) is None
    (words,) = said
    assert why in words.split("is not used: ")[1]
    same = find_server(RunSettings(model=ModelSettings("tiny")), said.append)
    assert same is not None
    same.close()


def test_ask_answers_itself_where_a_server_would_answer_otherwise(server: ServerProcess, runtime: Path) -> None:
    done = command("ask", "-v", LETTER, TO_WHOM, "--choices", "Yes,No", runtime=runtime)
    assert "--choices" in done.stderr.split("is not used: ")[1].splitlines()[0]
    assert "answered here" in done.stderr
    assert done.stdout in ("Yes\n", "No\n")


def test_other_weights_under_the_same_name_are_noticed(runtime: Path, tmp_path: Path) -> None:
    from tests.small_checkpoints import save_checkpoint

    folder = save_checkpoint(tmp_path / "small")
    process = ServerProcess("--socket", runtime=runtime, model=str(folder))
    try:
        asked = ("ask", "-v", "samples/documents/notice.bmp", "What?", "--model")
        assert "answered through" in command(*asked, folder, runtime=runtime).stderr
        relative = os.path.relpath(folder, SAMPLES)
        found = [
            command(
                "ask",
                "--json",
                *more,
                SAMPLES / "notice.bmp",
                "What?",
                "--model",
                relative,
                runtime=runtime,
                cwd=SAMPLES,
            )
            for more in (["-v"], ["--no-server"])
        ]
        assert "answered through" in found[0].stderr
        assert without_times(found[0].stdout) == without_times(found[1].stdout)
        config = (
            json.loads((folder / "generation_config.json").read_text())
            if (folder / "generation_config.json").exists()
            else {}
        )
        (folder / "generation_config.json").write_text(json.dumps(config | {"max_new_tokens": 7, "eos_token_id": 131}))
        done = command(*asked, folder, runtime=runtime)
        assert "is not used: it answers with other settings" in done.stderr
        assert done.returncode == 0
    finally:
        process.end()


def test_ask_answers_by_itself_what_a_killed_server_left(runtime: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    process = ServerProcess("--socket", runtime=folder)
    questions = [word for number in range(40) for word in ("-q", f"What is the date on page {number}?")]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "IDEFICS_CLI_MODEL": "tiny"}
    arguments = [sys.executable, "-m", "idefics_cli", "ask", "-v", "--json", str(SAMPLES / "notice.bmp"), *questions]
    with (
        (tmp_path / "said").open("w+") as said,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as asking,
    ):
        assert asking.stdout
        first = asking.stdout.readline()
        process.end(signal.SIGKILL)
        rest = asking.stdout.read()  # `communicate` would leave out what was read beyond the first line
    assert asking.returncode == 0
    assert "is lost" in (tmp_path / "said").read_text()
    rows = without_times(first + rest)
    assert [row["question"] for row in rows] == questions[1::2]
    assert (
        "answered here" in command("ask", "-v", LETTER, TO_WHOM, runtime=folder).stderr
    )  # and a dead socket is removed
    assert sockets_in(folder) == []
    again = ServerProcess("--socket", runtime=folder)
    assert "answered through" in command("ask", "-v", LETTER, TO_WHOM, runtime=folder).stderr
    assert again.end() == 0


def test_a_run_whose_server_is_killed_says_so_and_goes_on_with_resume(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    process = ServerProcess("--socket", runtime=folder)
    output = tmp_path / "rows.jsonl"
    asked = ["run", "samples/documents", "-q", "samples/questions.csv", "-o", str(output), "--split", "never"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "IDEFICS_CLI_MODEL": "tiny"}
    with subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", *asked],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=SAMPLES.parent.parent,
    ) as run:
        until(lambda: output.exists() and output.read_text().count("\n") > 5)
        process.end(signal.SIGKILL)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 4
    assert "has gone, or is stopping" in said
    assert "--resume" in said
    done = command(*asked, "--resume", runtime=folder)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["key"] for line in output.read_text().splitlines()]
    assert len(rows) == len(set(rows)) > 60


def sockets_in(folder: Path) -> list[str]:
    return [path.name for path in (folder / "idefics-cli").glob("*.sock")]


def test_keep_starts_a_server_which_ends_when_it_is_idle(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    first = command("ask", "-v", "--keep", "4s", LETTER, TO_WHOM, runtime=folder)
    assert first.stdout == "Erik Kansfield\n"
    assert "a server is started in the background" in first.stderr
    assert str(folder / "idefics-cli" / "serve.log") in first.stderr
    assert "answered through" in first.stderr
    second = command("ask", "-v", "--keep", "4s", LETTER, TO_WHOM, runtime=folder)
    assert "is started" not in second.stderr
    assert "answered through" in second.stderr
    (name,) = sockets_in(folder)
    until(lambda: not sockets_in(folder))
    pid = int(name.removesuffix(".sock"))
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1])


def test_a_server_that_cannot_be_started_is_no_reason_not_to_answer(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    (folder / "idefics-cli").mkdir(mode=0o777)
    (folder / "idefics-cli").chmod(0o777)  # others may write there
    done = command("ask", "-v", "--keep", "5m", LETTER, TO_WHOM, runtime=folder)
    assert (done.returncode, done.stdout) == (0, "Erik Kansfield\n")
    assert "not a folder that only you can use" in done.stderr
    quiet = command("ask", "--keep", "5m", LETTER, TO_WHOM, runtime=folder)
    assert "note: --keep: no server answers these questions" in quiet.stderr


def test_servers_of_another_version_and_ones_that_say_nothing_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    listener, path = listen(os.getpid())
    with listener:
        asking = subprocess.Popen(
            [sys.executable, "-m", "idefics_cli", "ask", "-v", "--model", "tiny", LETTER, TO_WHOM],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stream, _ = listener.accept()
        greeting = b'{"idefics-cli": "99.0", "protocol": 1}'
        stream.sendall(len(greeting).to_bytes(4, "big") + greeting)
        answer, said = asking.communicate(timeout=60)
        stream.close()
    assert answer == "Erik Kansfield\n"
    assert "another version" in said
    path.unlink(missing_ok=True)


GREETING = """
import sys
from multiprocessing.connection import Client, Listener
from idefics_cli.local_socket.handshake import greet, greeting

_, end, address = sys.argv
greeting()
connection = Client(address) if end == "client" else Listener(address).accept()
sys.exit(not greet(connection))
"""


def test_servers_of_another_installation_or_of_files_that_changed_are_left_alone(tmp_path: Path) -> None:
    here, there = SAMPLES.parent.parent, tmp_path / "other"
    copied = shutil.copytree(here / "idefics_cli", there / "idefics_cli")
    address = tmp_path / "socket"

    def end(name: str, installed: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.Popen([sys.executable, "-P", "-c", GREETING, name, address], env=environment)

    def are_the_same(first: Path, second: Path, *, is_changed: bool = False) -> bool:
        server = end("server", first)
        until(address.exists)
        if is_changed:
            os.utime(copied / "pipeline.py")
        codes = {end("client", second).wait(60), server.wait(60)}
        address.unlink(missing_ok=True)
        assert len(codes) == 1
        return codes == {0}

    assert are_the_same(there, there)
    assert not are_the_same(here, there)
    assert not are_the_same(there, there, is_changed=True)


def test_only_sockets_that_are_private_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o755)  # not a runtime folder of a session
    assert str(os.getuid()) in socket_folder().name
    tmp_path.chmod(0o700)
    folder = make_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    listener, path = listen(1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sockets() == [path]
    path.chmod(0o666)
    assert sockets() == []
    path.chmod(0o600)
    (folder / "2.sock").write_text("no socket")
    assert sockets() == [path]
    with listener:
        connection = connect(path)
        assert connection is not None
        connection.close()
    assert connect(path) is None
    assert not path.exists()
    folder.chmod(0o755)
    assert sockets() == []
