"""SIGKILL of a run and of its page processes: no row is lost, doubled or changed."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.conftest import SAMPLES

RUN = [sys.executable, "-m", "idefics_cli", "run", "--model", "tiny", "--quiet"]
DOCUMENTS = ("notice.bmp", "receipt.webp", "invoice.pdf", "price-list.gif")
CHANGING = {"document", "batch_size", "answered_at"}
"""What another spelling, company and time may change; all `_ms` besides."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of an output without what may change; confidence to three digits, since batches round differently."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        {name: row[name] for name in row if name not in CHANGING and not name.endswith("_ms")}
        | {"name": Path(row["document"]).name, "confidence": f"{float(row['confidence']):.3f}"}
        for row in rows
    ]


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with documents, one of them twice, and questions, two of them equal; one stands above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    inbox = tmp_path / "inbox"
    (inbox / "again").mkdir(parents=True)
    for name in DOCUMENTS:
        shutil.copy(SAMPLES / "documents" / name, inbox)
    shutil.copy(inbox / "notice.bmp", inbox / "again" / "twin.bmp")
    with (SAMPLES / "questions.csv").open(encoding="utf-8", newline="") as stream:
        asked = [row for row in csv.DictReader(stream) if Path(row["document"]).name in DOCUMENTS]
    asked = asked[::2]
    asked = [{**row, "document": Path(row["document"]).name, "mine": str(n)} for n, row in enumerate(asked)]
    asked += [{**row, "document": "twin.bmp", "mine": "twin"} for row in asked if row["document"] == "notice.bmp"]
    asked += [{**asked[0], "mine": f"equal {n}"} for n in range(2)]
    with Path("questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(asked[0]))
        writer.writeheader()
        writer.writerows(asked)
    return inbox


def spell(rng: random.Random, number: int) -> str:
    """Move, copy or name the folder of the documents anew; return its new spelling."""
    (here,) = (path for path in Path().glob("inbox*") if path.is_dir() and not path.is_symlink())
    way = rng.choice(("plain", "dot", "whole", "link", "moved", "copied"))
    if way == "link":
        Path(f"link-{number}").symlink_to(here)
        return f"link-{number}"
    if way in ("moved", "copied"):
        there = Path(f"inbox-{number}")
        if way == "copied":
            shutil.copytree(here, there)
            shutil.rmtree(here)
        else:
            here.rename(there)
        for link in Path().glob("link-*"):
            link.unlink()
        return str(there)
    return {"plain": str(here), "dot": f"./{here}/", "whole": str(here.resolve())}[way]


def run_and_kill(folder: str, output: Path, seconds: float) -> bool:
    """Start or resume a run and kill it after so long; says whether it had ended by itself."""
    process = subprocess.Popen([*RUN, folder, "-q", "questions.csv", "-o", str(output), "--resume"])
    workers = []
    try:
        assert process.wait(seconds) == 0
        return True
    except subprocess.TimeoutExpired:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        return False
    finally:
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_runs_end_like_one_that_was_left_alone(inbox: Path, tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    undisturbed = tmp_path / "undisturbed.csv"
    started = time.monotonic()
    subprocess.run([*RUN, str(inbox), "-q", "questions.csv", "-o", str(undisturbed)], check=True)
    took = time.monotonic() - started
    expected = rows_of(undisturbed)
    assert len(expected) == len(Path("questions.csv").read_text().splitlines()) - 1
    assert max(Counter(row["key"] for row in expected).values()) >= 3
    killed = finished = written = 0
    is_over = False
    while killed < kills or not is_over:
        output = tmp_path / f"run-{finished}.csv"
        is_over = run_and_kill(spell(rng, killed), output, rng.uniform(0.3, took) if killed < kills else 300.0)
        if is_over:
            assert rows_of(output) == expected
            finished += 1
            continue
        killed += 1
        written += output.exists() and output.stat().st_size > 0
    print(f"{killed} kills, {written} of them with rows or a header written, {finished} outputs as undisturbed")
    assert [path.name for path in tmp_path.glob(".*")] == []  # neither locks nor files to be


def test_page_processes_that_are_killed_between_pages_are_replaced(inbox: Path) -> None:
    process = subprocess.Popen(
        [*RUN, "-q", "-", "-o", "-", "--format", "jsonl", "--workers", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    asked = [("notice.bmp", 1), ("invoice.pdf", 1), ("receipt.webp", 1), ("invoice.pdf", 2), ("price-list.gif", 1)]
    killed = 0
    for name, page in asked:
        line = {"question": "What is the total?", "document": str(inbox / name), "page": page}
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        row = json.loads(process.stdout.readline())
        assert (row["status"], Path(row["document"]).name) == ("ok", name)
        for child in psutil.Process(process.pid).children(recursive=True):  # all of them idle
            child.kill()
            killed += 1
    assert killed >= len(asked)
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def test_page_processes_that_are_killed_at_work_cost_their_pages_at_most(inbox: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    output = tmp_path / "out.csv"
    process = subprocess.Popen([*RUN, str(inbox), "-q", "questions.csv", "-o", str(output), "--workers", "2"])
    killed = 0
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline
        if killed < 20 and (children := psutil.Process(process.pid).children(recursive=True)):
            os.kill(rng.choice(children).pid, signal.SIGKILL)
            killed += 1
        time.sleep(rng.uniform(0.05, 0.4))
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    failed = [row["error"] for row in rows if row["status"] != "ok"]
    print(f"{killed} page processes killed, {len(failed)} of {len(rows)} rows failed")
    assert killed > 0
    assert process.returncode == (6 if failed else 0)
    assert len(rows) == len(Path("questions.csv").read_text().splitlines()) - 1
    assert all(error.startswith("render-failed: ") for error in failed)
    # What failed for the kills alone is answered by the next run.
    subprocess.run(
        [*RUN, str(inbox), "-q", "questions.csv", "-o", str(output), "--resume", "--retry-failed"], check=True
    )
    assert {row["status"] for row in csv.DictReader(output.open(encoding="utf-8", newline=""))} == {"ok"}
