"""The commands as people run them: real processes, the real tiny model."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.conftest import ROOT, SAMPLES, Run
from tests.test_pdf import write_pdf

LETTER = SAMPLES / "documents" / "notice.bmp"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def question_for(name: str) -> tuple[str, str]:
    return next(
        (r["question"], r["answers"]) for r in rows_of(SAMPLES / "questions.csv") if r["document"].endswith(name)
    )


def test_ask_prints_the_answer_and_nothing_else_on_stdout(cli: Run) -> None:
    question, answer = question_for("notice.bmp")
    done = cli("ask", LETTER, question, "--model", "tiny")
    assert (done.returncode, done.stdout) == (0, f"{answer}\n"), done.stderr


def test_ask_json_is_the_whole_row(cli: Run) -> None:
    done = cli(
        "ask",
        SAMPLES / "documents" / "invoice.pdf",
        "What is the total?",
        "Who?",
        "--model",
        "tiny",
        "--json",
        "--pages",
        "1",
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["question"], row["page"], row["rasterizer"]) for row in rows] == [
        ("What is the total?", "1", "pdfium"),
        ("Who?", "1", "pdfium"),
    ]


def test_ask_a_bad_document_exits_6_with_the_kind(cli: Run, tmp_path: Path) -> None:
    write_pdf(tmp_path / "x.pdf", password="x")
    done = cli("ask", tmp_path / "x.pdf", "q", "--model", "tiny")
    assert (done.returncode, done.stdout) == (6, "")
    assert "encrypted: needs a password: --password" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", "gone.pdf", "q", "--model", "tiny"], 3, "gone.pdf: no such file"),
        (["ask", str(LETTER), "q", "--model", "/nowhere"], 4, "--model takes"),
        (["ask", str(LETTER), "q", "--pages", "x"], 2, "as in 1-3,7,-1"),
        (["ask", str(LETTER), "q", "--prompt", "x"], 2, "{question}"),
        (["run", str(LETTER)], 2, "-q FILE"),
        (["run", str(LETTER), "-q", "gone.csv"], 3, "gone.csv: No such file"),
        (["run", str(LETTER), "-q", str(SAMPLES / "questions.csv"), "-o", "/nowhere/out.csv"], 5, "No such file"),
        (["run", str(LETTER), "-q", str(SAMPLES / "questions.csv"), "--resume"], 2, "-o FILE"),
        (["run", str(LETTER), "-q", str(SAMPLES / "questions.csv"), "--batch-size", "x"], 2, "neither auto"),
        (["eval", str(SAMPLES / "questions.csv")], 3, "no column 'answer'"),
        (["eval", "gone.csv"], 3, "gone.csv"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(cli: Run, arguments: list[str], code: int, words: str) -> None:
    done = cli(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of bad document among good ones, and a question for each."""
    folder = tmp_path_factory.mktemp("mixed")
    Image.new("RGB", (200, 200)).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nbroken")
    (folder / "text.png").write_bytes(b"text")
    write_pdf(folder / "locked.pdf", password="x")
    Image.new("RGB", (300, 300), "beige").save(folder / "blank.png")
    (folder / "good.bmp").write_bytes(LETTER.read_bytes())
    names = ("cut.jpg", "empty.pdf", "broken.pdf", "text.png", "locked.pdf", "blank.png", "good.bmp")
    lines = ["question;document;status;note", *(f'"What, now?";{name};theirs;"a\nb"' for name in names)]
    (folder / "questions.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_run_answers_the_good_rows_and_says_what_is_wrong_with_the_others(
    cli: Run, mixed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    done = cli("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny")
    assert done.returncode == 6, done.stderr
    assert done.stdout == ""
    found = {Path(row["document"]).name: row for row in rows_of(output)}
    kinds = {name: row["error"].partition(":")[0] for name, row in found.items()}
    assert kinds == {
        "cut.jpg": "unreadable",
        "empty.pdf": "unreadable",
        "broken.pdf": "unreadable",
        "text.png": "unsupported",
        "locked.pdf": "encrypted",
        "blank.png": "",
        "good.bmp": "",
    }
    assert "blank page" in found["blank.png"]["warning"]
    assert {row["note"] for row in found.values()} == {"a\nb"}
    assert {row["status_input"] for row in found.values()} == {"theirs"}
    assert "status -> status_input" in done.stderr
    assert "3 unreadable" in done.stderr

    # the output is there: refused, gone on with, and gone on with for the failed rows
    assert cli("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny").returncode == 5
    before = output.read_text()
    again = cli("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny", "--resume")
    assert (again.returncode, output.read_text()) == (0, before)
    retried = cli(
        "run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny", "--resume", "--retry-failed", "all"
    )
    assert retried.returncode == 6
    assert {row["key"] for row in rows_of(output)} == {row["key"] for row in found.values()}
    assert len(rows_of(output)) == 7
    # none of them is of a kind that passes by itself; other settings do not fit
    before = output.read_text()
    passing = cli("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny", "--retry-failed", "--resume")
    assert (passing.returncode, output.read_text()) == (0, before)
    other = cli("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny", "--resume", "--split", "never")
    assert (other.returncode, output.read_text()) == (5, before)
    assert "answered with other settings (--split)" in other.stderr


def test_a_pipe_gives_a_row_a_line_good_or_bad(cli: Run) -> None:
    question, answer = question_for("notice.bmp")
    lines = [
        json.dumps({"question": question, "document": str(LETTER), "id": 1, "mine": [1, 2]}),
        "{nope",
        json.dumps({"question": "q", "document": "gone.pdf"}),
        json.dumps({"question": "q", "document": str(LETTER), "page": 9}),
        json.dumps({"question": question, "document": str(LETTER), "id": 1}),
    ]
    done = cli("run", "-q", "-", "-o", "-", "--format", "jsonl", "--model", "tiny", stdin="\n".join(lines))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 6, done.stderr
    assert [row["error"].partition(":")[0] for row in rows] == [
        "",
        "bad-question",
        "bad-question",
        "no-such-page",
        "bad-question",
    ]
    assert (rows[0]["answer"], rows[0]["mine"]) == (answer, [1, 2])


def test_a_closed_pipe_ends_quietly_after_a_whole_row() -> None:
    command = f"cat {SAMPLES}/questions.jsonl | {sys.executable} -m idefics_cli run -q - -o - --format jsonl --model tiny | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert json.loads(done.stdout)["status"] == "ok"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_run_with_the_rows_that_are_done(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", "run", "-q", "-", "-o", "-", "--format", "jsonl", "--model", "tiny"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with SIGINT ignored, and what runs these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(json.dumps({"question": "q", "document": str(LETTER)}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["status"] == "ok"  # answered though the pipe stays open
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == code
    assert time.monotonic() - started < 5
    assert "Traceback" not in process.stderr.read()


def test_eval_scores_by_any_column(cli: Run, tmp_path: Path) -> None:
    table = tmp_path / "answers.csv"
    table.write_text("answer,answers,status,split\n12.50.,12.50,ok,true\nx,y,ok,false\n,z,failed,false\nno,,ok,false\n")
    done = cli("eval", table, "--by", "split", "--json", "-o", tmp_path / "scored.csv")
    report = json.loads(done.stdout)
    assert report["full_stop"] == "strip"
    assert {name: (group["rows"], group["exact"]) for name, group in report["scores"].items()} == {
        "true": (1, 1.0),
        "false": (2, 0.0),
        "all": (3, 0.3333),
    }
    assert [row["exact"] for row in rows_of(tmp_path / "scored.csv")] == ["1.0000", "0.0000", "0.0000", ""]
    kept = json.loads(cli("eval", table, "--json", "--full-stop", "keep").stdout)
    assert kept["scores"]["all"]["exact"] == 0.0
    assert "ANLS" in cli("eval", table).stdout


def test_a_run_over_the_samples_is_right_complete_and_accounts_for_its_time(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    done = cli("run", SAMPLES / "documents", "-q", SAMPLES / "questions.csv", "-o", output, "--model", "tiny")
    assert done.returncode == 0, done.stderr
    asked, rows = rows_of(SAMPLES / "questions.csv"), rows_of(output)
    assert sorted((r["question"], r["answers"]) for r in rows) == sorted((r["question"], r["answers"]) for r in asked)
    right = sum(row["answer"] == row["answers"] for row in rows)
    assert right >= 0.9 * len(rows)
    assert "accuracy" in done.stderr
    costs = ("raster_ms", "prepare_ms", "vision_ms", "prefill_ms", "decode_ms")
    spent = sum(float(row[column]) for row in rows for column in costs) / 1e3
    took = re.search(r"time +([\d.]+) s", done.stderr)
    assert took
    assert spent == pytest.approx(float(took[1]), rel=0.25)  # page processes overlap the model on busy machines


def test_version_and_help(cli: Run) -> None:
    assert cli("--version").stdout.startswith("idefics-cli ")
    for command in ("ask", "run", "demo", "eval", "bench", "doctor"):
        assert "Example" in cli(command, "--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from idefics_cli.cli import app\n"
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "[]", done.stderr


def test_a_run_that_is_going_wrong_stops_with_its_rows_written(cli: Run, mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    command = ("run", "-q", mixed / "questions.csv", "-o", output, "--model", "tiny")
    done = cli(*command, "--max-failures", "2")
    assert done.returncode == 6
    assert "stopped: 3 of 3 rows failed" in done.stderr
    assert [row["status"] for row in rows_of(output)] == ["failed"] * 3
    assert cli(*command, "--resume", "--max-failures", "2").returncode == 6
    assert len(rows_of(output)) == 7


def test_a_full_disk_exits_5_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "idefics_cli", "run", str(SAMPLES / "documents"), "-q",
               str(SAMPLES / "questions.csv"), "-o", str(output), "--model", "tiny", "--limit", "20"]  # fmt: skip
    limit = (4000, resource.RLIM_INFINITY)
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert done.returncode == 5, done.stderr
    assert "--resume goes on" in done.stderr
    some = rows_of(output)
    assert 0 < len(some) < 20
    assert all(row["model"] == "tiny" for row in some)  # the last column of each is there
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len({row["key"] for row in rows_of(output)}) == len(rows_of(output)) == len(some) + 20


def held_open(output: Path) -> subprocess.Popen[str]:
    """Start a run that has answered a question and waits for the next."""
    process = subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", "run", "-q", "-", "-o", str(output), "--model", "tiny"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin
    process.stdin.write(json.dumps({"question": "q", "document": str(LETTER)}) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not output.exists() or len(output.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_two_runs_at_once_and_a_wait(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    first = held_open(output)
    command = ("run", LETTER, "-q", tmp_path / "q.csv", "-o", output, "--model", "tiny", "--resume")
    (tmp_path / "q.csv").write_text("question\nWho?\n")
    second = cli(*command)
    assert second.returncode == 75
    assert f"process {first.pid}" in second.stderr
    assert first.stdin and first.stderr
    threading.Timer(1.0, first.stdin.close).start()
    waited = cli(*command, "--wait", "60")
    assert waited.returncode == 0, waited.stderr
    assert first.wait(10) == 0
    first.stderr.close()
    assert len(rows_of(output)) == 2


def test_workers_end_with_the_run_whatever_ends_it(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = held_open(tmp_path / f"{number}.csv")
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        process.send_signal(number)
        assert process.wait(5) == code
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert alive == []
        assert process.stdin and process.stderr
        process.stderr.close()
        assert len(rows_of(tmp_path / f"{number}.csv")) == 1


def test_a_place_that_can_not_be_written_exits_5(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question\nWho?\n")
    for output in ("/proc/out.csv", "/dev/full/out.csv"):
        done = cli("run", LETTER, "-q", tmp_path / "q.csv", "-o", output, "--model", "tiny")
        assert done.returncode == 5, done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_said_holds_nothing_of_the_documents(cli: Run) -> None:
    question, answer = question_for("notice.bmp")
    (line,) = [json.dumps({"question": question, "document": str(LETTER)})]
    done = cli("run", "-q", "-", "-o", "-", "--model", "tiny", "--verbose", stdin=line)
    assert answer in done.stdout
    assert answer not in done.stderr
    assert question not in done.stderr
