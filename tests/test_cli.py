"""The commands as people run them: real processes, the real tiny model. A process costs seconds: each shows much."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.conftest import SAMPLES, Run
from tests.pdfs import write_pdf

NOTICE = SAMPLES / "documents" / "notice.bmp"
QUESTION = "Who is the recipient of the letter?"
DATED = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IDEFICS_CLI_MODEL", "tiny")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def lasting(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.endswith(("_ms", "_at")) and name != "batch_size"}


@pytest.fixture(scope="module")
def answer() -> str:
    asked = rows_of(SAMPLES / "questions.csv")
    return next(row["answers"] for row in asked if row["question"] == QUESTION)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bad documents among good ones, and a question for each."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "text.png").write_bytes(b"text")
    write_pdf(folder / "locked.pdf", password="x")
    Image.new("RGB", (300, 300), "beige").save(folder / "blank.png")
    shutil.copy(NOTICE, folder / "good.bmp")
    names = ("empty.pdf", "text.png", "locked.pdf", "blank.png", "good.bmp")
    lines = ["question;document;status;note", *(f'"What, now?";{name};theirs;"a\nb"' for name in names)]
    (folder / "questions.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_ask_prints_the_answer_and_nothing_else(cli: Run, answer: str) -> None:
    done = cli("ask", NOTICE, QUESTION)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{answer}\n", "")


def test_ask_names_the_answers_of_several_documents_and_questions(cli: Run, answer: str, tmp_path: Path) -> None:
    write_pdf(tmp_path / "locked.pdf", password="x")
    invoice = SAMPLES / "documents" / "invoice.pdf"
    done = cli("ask", NOTICE, invoice, tmp_path / "locked.pdf", "-q", QUESTION, "-q", "What is the total?", "-v")
    assert done.returncode == 6
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == f"{NOTICE}: {QUESTION} {answer}"
    assert lines[1].startswith(f"{NOTICE}: What is the total? ")
    assert re.match(rf"{re.escape(str(invoice))}, page [123]: {re.escape(QUESTION)} .", lines[2])
    assert re.match(rf"{re.escape(str(invoice))}, page [123]: What is the total\? .", lines[3])
    for question in (QUESTION, "What is the total?"):
        assert f"error: {tmp_path / 'locked.pdf'}: {question} encrypted" in done.stderr
    assert "engine: native" in done.stderr
    assert answer not in done.stderr


def test_ask_reads_stdin_and_passwords_and_prints_whole_rows(cli: Run, tmp_path: Path) -> None:
    write_pdf(tmp_path / "locked.pdf", password="x")
    (tmp_path / "password").write_text("x\n")
    locked = (tmp_path / "locked.pdf").read_bytes().decode("latin-1")
    command = [sys.executable, "-m", "idefics_cli", "ask", "-", "Who?", "--json", "--password-file"]
    done = subprocess.run([*command, str(tmp_path / "password")], input=locked.encode("latin-1"), capture_output=True)
    row = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (row["document"], row["page"], row["status"], row["rasterizer"]) == ("<stdin>", "1", "ok", "pdfium")


def test_run_answers_the_good_rows_and_says_what_is_wrong_with_the_others(
    cli: Run, mixed: Path, tmp_path: Path
) -> None:
    output, kinds = (
        tmp_path / "out.csv",
        {"empty.pdf": "unreadable", "text.png": "unsupported", "locked.pdf": "encrypted"},
    )
    command = ("run", "-q", mixed / "questions.csv", "-o", output)
    done = cli(*command)
    assert (done.returncode, done.stdout) == (6, "")
    found = {Path(row["document"]).name: row for row in rows_of(output)}
    assert {name: row["error"].partition(":")[0] for name, row in found.items() if row["error"]} == kinds
    assert "blank page" in found["blank.png"]["warning"]
    assert {(row["note"], row["status_input"]) for row in found.values()} == {("a\nb", "theirs")}
    # A dated line that names the output and the failures by kind, and one for each document that failed.
    (line,) = (line for line in done.stderr.splitlines() if str(output) in line)
    assert re.match(DATED + re.escape(f"{output}: 5 rows, 3 failed (1 "), line)
    for name, kind in kinds.items():
        assert re.search(f"^{DATED}failed: .*{re.escape(name)}: {kind}: ", done.stderr, re.MULTILINE)

    status = cli("status", output, "--json")
    assert status.returncode == 6
    assert json.loads(status.stdout)["failed_by_kind"] == {"unreadable": 1, "unsupported": 1, "encrypted": 1}
    status = cli("status", output, "--failed")
    assert status.returncode == 6
    assert [line.split(": ")[1:3] for line in status.stdout.splitlines()] == [
        ["What, now?", kind] for kind in kinds.values()
    ]
    status = cli("status", output, "--failed", "--json")
    assert [json.loads(line)["error"].partition(":")[0] for line in status.stdout.splitlines()] == list(kinds.values())
    refused = cli("status", output, "--failed", "-q", mixed / "questions.csv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "takes neither documents nor questions" in refused.stderr

    # The output is there: refused, gone on with, and gone on with for the failed rows.
    before = output.read_bytes()
    assert cli(*command).returncode == 5
    again = cli(*command, "--resume", "--retry-failed", "--quiet")
    assert (again.returncode, again.stderr, output.read_bytes()) == (0, "", before)
    imports = [sys.executable, "-X", "importtime", "-m", "idefics_cli", *map(str, command), "--resume", "--quiet"]
    idle = subprocess.run(imports, capture_output=True, text=True)
    assert idle.returncode == 0
    assert not re.search(r"\| +(torch|transformers|pandas)$", idle.stderr, re.MULTILINE)
    retried = cli(*command, "--resume", "--retry-failed", "all", "--quiet")
    assert retried.returncode == 6
    assert retried.stderr.count("\n") == 1 + len(kinds)
    assert "3 rows, 2 already answered, 3 failed" in retried.stderr
    assert sorted(row["key"] for row in rows_of(output)) == sorted(row["key"] for row in found.values())
    other = cli(*command, "--resume", "--split", "never")
    assert other.returncode == 5
    assert re.match(DATED + "error: .*answered with other settings \\(--split\\)", other.stderr)


def test_a_run_with_nothing_left_to_ask_imports_no_torch(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"text")
    command = ["run", str(tmp_path / "text.png"), "--ask", "Who?", "-o", str(tmp_path / "out.jsonl"), "--resume"]
    assert cli(*command).returncode == 6
    process = [sys.executable, "-X", "importtime", "-m", "idefics_cli", *command]
    done = subprocess.run(process, capture_output=True, text=True)
    assert done.returncode == 0
    assert "| idefics_cli.batch" in done.stderr.replace("   ", " ").replace("  ", " ")
    assert not re.search(r"\| +(torch|transformers|pandas)\n", done.stderr)


def test_doctor_warms_a_model_up_and_names_one_that_is_not_there(cli: Run) -> None:
    warm = cli("doctor", "--warm")
    assert re.fullmatch(r"tiny: loaded in [\d.]+ s\n", warm.stdout), warm.stderr
    gone = cli("doctor", "--model", "./gone")
    assert gone.returncode == 4
    assert "no such folder" in gone.stderr
    assert cli("doctor", "--warm", "--ray", "auto").returncode == 2


def test_doctor_says_what_all_gpus_would_be_and_joins_no_cluster_unasked(cli: Run) -> None:
    done = cli("doctor", "--model", "nobody/nothing")
    assert done.returncode == 0, done.stderr
    assert "run --gpus all" in done.stdout
    assert "Ray" not in done.stdout


def test_a_dry_run_and_status_say_what_is_missing(cli: Run, mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    inputs = (SAMPLES / "documents", "-q", SAMPLES / "questions.csv")
    done = cli("run", *inputs, "-o", output, "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(output)) == 2
    before = output.read_bytes()
    total = len(rows_of(SAMPLES / "questions.csv"))

    status = cli("status", output)
    assert status.returncode == 0
    status = cli("status", output, *inputs, "--json")
    facts = json.loads(status.stdout)
    assert (status.returncode, facts["missing"], facts["not_asked"], facts["rows"]) == (6, total - 2, 0, 2)
    assert len(facts["first_missing"]) == 20

    dry = cli("run", *inputs, "-o", output, "--resume", "--dry-run")
    said = " ".join(dry.stdout.split())
    assert (dry.returncode, output.read_bytes()) == (0, before), dry.stderr
    assert f"rows to ask {total - 2} " in said
    assert "rows already answered 2 " in said
    assert "per earlier row" in said
    # What the run refuses, the dry run refuses.
    assert cli("run", *inputs, "-o", output, "--dry-run").returncode == 5
    failing = cli("run", "-q", mixed / "questions.csv", "--dry-run")
    assert failing.returncode == 6
    assert "empty.pdf: unreadable" in failing.stdout


def test_a_pipe_gives_a_row_for_each_line_good_or_bad(cli: Run, answer: str) -> None:
    lines = [
        json.dumps({"question": QUESTION, "document": str(NOTICE), "id": 1, "mine": [1, 2]}),
        "{nope",
        json.dumps({"question": "q", "document": str(NOTICE), "page": 9}),
    ]
    done = cli("run", "-q", "-", "-o", "-", "--format", "jsonl", stdin="\n".join(lines))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 6, done.stderr
    assert [row["error"].partition(":")[0] for row in rows] == ["", "bad-question", "no-such-page"]
    assert (rows[0]["answer"], rows[0]["mine"]) == (answer, [1, 2])


def test_a_closed_pipe_ends_quietly_after_a_whole_row() -> None:
    run = f"{sys.executable} -m idefics_cli run -q - -o - --format jsonl --quiet"
    command = f"cat {SAMPLES}/questions.jsonl | {run} {SAMPLES}/documents | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout)["status"] == "ok"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_run_with_the_rows_that_are_done(number: signal.Signals, code: int, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "idefics_cli", "run", "-q", "-", "-o", str(output)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with SIGINT ignored, and what runs these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin
    assert process.stderr
    process.stdin.write(json.dumps({"question": "q", "document": str(NOTICE)}) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not output.exists() or len(output.read_text().splitlines()) < 2:  # answered though the pipe stays open
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(number)
    assert process.wait(5) == code
    said = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in said
    assert f"1 new rows are in {output}; the same command with --resume" in said
    assert len(rows_of(output)) == 1
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []


def test_under_cron_a_good_night_is_silent_and_a_bad_one_is_told_in_lines(mixed: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [
        "run",
        str(mixed / "good.bmp"),
        "--model",
        "tiny",
        "-o",
        "out.csv",
        "--resume",
        "--quiet",
        "--ask",
        "Who?",
    ]
    for arguments, code, words in (
        (command, 0, ""),
        ([*command[:1], str(mixed / "text.png"), *command[1:]], 6, "out.csv: 1 row, 1 already answered, 1 failed"),
        ([*command, "--split", "never"], 5, "error: out.csv: its rows were answered with other settings"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "idefics_cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == (2 if code == 6 else bool(words))  # what failed is named
        assert not words or re.match(DATED, done.stderr)


def test_the_demo_is_right_and_eval_scores_it_and_neither_replaces_what_is_not_its_own(
    cli: Run, tmp_path: Path
) -> None:
    done = cli("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "demo-answers.csv"
    rows = rows_of(output)
    assert len(rows) == len(rows_of(SAMPLES / "questions.csv"))
    assert done.stdout.count("wrong") <= 0.1 * len(rows)
    took = re.search(r"([\d.]+) s", done.stderr)
    assert took

    report = json.loads(cli("eval", output, "--by", "document", "--json").stdout)
    assert report["full_stop"] == "strip"
    assert report["scores"]["all"]["rows"] == len(rows)
    assert report["scores"]["all"]["exact"] >= 0.9
    scores = tmp_path / "scores.csv"
    table = cli("eval", output, "-o", scores, "--full-stop", "keep")
    assert "ANLS" in table.stdout
    scored = rows_of(scores)
    assert [lasting(row) for row in rows] == [{name: row[name] for name in lasting(rows[0])} for row in scored]
    assert sum(row["exact"] == "1.0" for row in scored) >= 0.9 * len(rows)
    assert cli("eval", output, "-o", scores).returncode == 0  # its own file

    theirs = tmp_path / "theirs.csv"
    for content in ("question,answers\nWho?,me\n", "", "document,page\n"):
        theirs.write_text(content)
        refused = [cli("demo", "-o", theirs), cli("eval", output, "-o", theirs)] if content else []
        assert [done.returncode for done in refused] == [5] * len(refused)
        assert theirs.read_text() == content
    assert cli("eval", output, "-o", output).returncode == 5
    assert rows_of(output) == rows


def test_a_session_answers_from_a_script_without_a_main_guard(answer: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from idefics_cli import Session\n"
        f"with Session('tiny') as session: print(session.ask({str(NOTICE)!r}, {QUESTION!r}).answer)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{answer}\n", 0), done.stderr


def test_generation_options_reach_the_answers_and_guard_a_resumed_output(cli: Run, tmp_path: Path) -> None:
    letter, output = SAMPLES / "documents" / "letter.pdf", tmp_path / "a.csv"
    question = "To whom is the letter addressed?"
    common = ("run", letter, "--ask", question, "-o", output)
    chosen = cli(*common, "-m", "tiny", "--choices", "Erik,Erik Kansfield,Kansfield")
    assert chosen.returncode == 0, chosen.stderr
    (row,) = csv.DictReader(output.open(encoding="utf-8"))
    assert (row["answer"], row["new_tokens"]) == ("Erik Kansfield", "15")
    assert float(row["confidence"]) > 0.5
    for other, flag in ((("--stop", "k"), "--stop"), ((), "--choices")):
        again = cli(*common, "-m", "tiny", "--resume", *other)
        assert again.returncode == 5
        assert flag in again.stderr
    stopped = cli("ask", letter, question, "-m", "tiny", "--stop", " ")
    assert stopped.stdout == "Erik\n"
    warm = [cli("ask", letter, question, "-m", "tiny", "--temperature", "50", "--seed", n).stdout for n in "778"]
    assert warm[0] == warm[1] != warm[2]
    wrong = cli("ask", letter, question, "-m", "tiny", "--top-p", "0.5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "give --temperature above 0 too, or leave --top-p out" in wrong.stderr
