"""Several workers answer as one process does, whatever happens to them."""

from __future__ import annotations

import csv
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from idefics_cli.batch import BatchResult, run
from idefics_cli.config import RunSettings
from idefics_cli.errors import ModelError
from idefics_cli.records import Row
from tests.test_kills import RUN, inbox, rows_of
from tests.worker_engines import open_dies_loading, open_fake, open_unloadable, settings

assert inbox  # a fixture

DOCUMENTS = 12
SECONDS = 60


@pytest.fixture
def questions(grey_png: Callable[..., Path], tmp_path: Path) -> Path:
    """Five questions to each of twelve documents, two of which are equal, and one to a broken one."""
    path = tmp_path / "questions.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["document", "question", "mine"])
        for number in range(DOCUMENTS):
            name = grey_png(f"{number}.png", 40 + 10 * (number // 2 if number < 2 else number), size=(60, 80)).name
            writer.writerows([name, f"slow {one}", f"{number} {one}"] for one in range(5))
        (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
        writer.writerow(["broken.pdf", "what?", "none"])
    return path


def answered(questions: Path, given: RunSettings, **more: object) -> BatchResult:
    return run([], str(questions), given, io.StringIO(), open_with=open_fake, **more)  # type: ignore[arg-type]


@pytest.fixture
def expected(questions: Path, tmp_path: Path) -> list[dict[str, str]]:
    answered(questions, settings(tmp_path / "one.csv", None))
    return rows_like(tmp_path / "one.csv")


def rows_like(path: Path) -> list[dict[str, str]]:
    """Rows without what another time changes."""
    with path.open(newline="") as stream:
        return [
            {name: row[name] for name in row if not name.endswith("_ms") and name != "answered_at"}
            for row in csv.DictReader(stream)
        ]


def in_order(rows: list[dict[str, str]]) -> list[list[str]]:
    return sorted(list(row.values()) for row in rows)


def descendants_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_answer_like_one_process_row_for_row(
    workers: int, questions: Path, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    result = answered(questions, settings(tmp_path / "out.csv", workers))
    assert rows_like(tmp_path / "out.csv") == expected
    assert (result.progress.rows, result.progress.failed) == (5 * DOCUMENTS + 1, 1)
    assert sum(share.rows for share in result.workers) == 5 * DOCUMENTS + 1
    assert all(share.rows and share.losses == 0 for share in result.workers)
    assert result.progress.pages == sum(share.pages for share in result.workers) >= DOCUMENTS


def test_unordered_rows_are_the_same_rows(questions: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    answered(questions, settings(tmp_path / "out.csv", 2, unordered=True))
    assert in_order(rows_like(tmp_path / "out.csv")) == in_order(expected)


def test_a_resumed_run_asks_what_is_missing_only(
    questions: Path, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    lines = (tmp_path / "one.csv").read_text().splitlines(keepends=True)
    kept = lines[:1] + lines[1::2]
    (tmp_path / "out.csv").write_text("".join(kept))
    result = answered(questions, settings(tmp_path / "out.csv", 2, resume=True))
    assert result.progress.skipped == len(kept) - 1
    assert sorted(row["key"] for row in rows_like(tmp_path / "out.csv")) == sorted(row["key"] for row in expected)
    assert "no question" not in " ".join(result.notes)


def test_a_document_that_ends_every_worker_becomes_failed_rows(
    questions: Path, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    with questions.open("a") as stream:
        stream.write("5.png,please kill,first\n5.png,also kill,second\n")
    notes: list[str] = []
    result = answered(questions, settings(tmp_path / "out.csv", 2), on_note=notes.append)
    rows = rows_like(tmp_path / "out.csv")
    failed = [row for row in rows if row["error"].startswith("model-error: ")]
    assert {row["document"] for row in failed} == {str(questions.parent / "5.png")}
    assert {row["mine"] for row in failed} >= {"first", "second"}
    assert all("three workers in a row" in row["error"] for row in failed)
    others = [row for row in expected if row["document"] not in {row["document"] for row in failed}]
    assert [row for row in rows if row["document"] not in {row["document"] for row in failed}] == others
    assert len(rows) == len(expected) + 2
    losses = sum(share.losses for share in result.workers)
    assert 3 <= losses <= 5  # before it was suspected, two workers may have held questions about it
    assert sum("SIGKILL" in words for words in notes) == losses
    # Nothing else can be asked of it: the keys are those that its questions have.
    assert answered(questions, settings(tmp_path / "out.csv", 2, resume=True)).progress.skipped == len(rows)


def test_a_poisoned_device_costs_time_only(questions: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    with questions.open("a") as stream:
        stream.write(f"3.png,poison {tmp_path / 'poisoned'},last\n")
    notes: list[str] = []
    answered(questions, settings(tmp_path / "out.csv", 2), on_note=notes.append)
    rows = rows_like(tmp_path / "out.csv")
    assert [row for row in rows if row["mine"] != "last"] == expected
    assert [row["status"] for row in rows if row["mine"] == "last"] == ["ok"]
    assert len(notes) == 1
    assert "the device has failed" in notes[0]


@pytest.mark.parametrize(("what", "why"), [("hang", "has done no step"), ("stop", "has reported nothing")])
def test_a_worker_that_hangs_without_dying_is_replaced(
    what: str, why: str, questions: Path, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    lines = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join([*lines[:9], f"3.png,{what} {tmp_path / 'hung'},last\n", *lines[9:]]))
    notes: list[str] = []
    result = answered(questions, settings(tmp_path / "out.csv", 2, hang_timeout=2.0), on_note=notes.append)
    rows = rows_like(tmp_path / "out.csv")
    assert in_order([row for row in rows if row["mine"] != "last"]) == in_order(expected)
    assert [row["status"] for row in rows if row["mine"] == "last"] == ["ok"]
    assert sum(share.losses for share in result.workers) == 1
    (note,) = notes
    assert why in note
    assert workers_of(psutil.Process()) == []


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_words(questions: Path, tmp_path: Path) -> None:
    given = settings(tmp_path / "out.csv", 2)
    with pytest.raises(ModelError, match="no such weights, says the loader"):
        run([], str(questions), given, io.StringIO(), open_with=open_unloadable)
    notes: list[str] = []
    with pytest.raises(ModelError, match="no worker is left"):
        run([], str(questions), given, io.StringIO(), open_with=open_dies_loading, on_note=notes.append)
    assert sum("given up" in words for words in notes) == 1
    assert workers_of(psutil.Process()) == []


def test_a_limit_and_a_reader_that_has_enough_end_the_workers(questions: Path, tmp_path: Path) -> None:
    import dataclasses

    given = settings(tmp_path / "out.csv", 2)
    limited = dataclasses.replace(given, questions=dataclasses.replace(given.questions, limit=7))
    assert answered(questions, limited).progress.rows == 7
    assert [row["mine"] for row in rows_like(tmp_path / "out.csv")] == [
        f"{number} {one}" for number in (0, 1) for one in range(5)
    ][:7]

    def enough(row: Row, progress: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        answered(questions, settings(tmp_path / "second.csv", 2), on_row=enough)
    assert workers_of(psutil.Process()) == []


def start(questions: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.worker_engines", str(questions), str(output), "2"])


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        try:
            if any("workers.children" in argument for argument in child.cmdline()):
                found.append(child)
        except psutil.Error:
            pass
    return found


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_of_workers_and_of_the_parent_lose_and_double_nothing(
    kills: int, questions: Path, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    rng = random.Random(kills)
    killed = {"one": 0, "all": 0, "parent": 0}
    finished, is_over = 0, False
    while sum(killed.values()) < kills or not is_over:  # at last none is killed
        output = tmp_path / f"out-{finished}.csv"
        process = start(questions, output)
        parent, seen = psutil.Process(process.pid), []
        ways = rng.sample(["one", "all", "parent"], 2) if sum(killed.values()) < kills else []
        for way in ways:  # two kills at most: three of the same document are its failure
            time.sleep(rng.uniform(0.3, 1.6))
            if process.poll() is not None:
                break
            seen += parent.children(recursive=True)
            chosen = [parent] if way == "parent" else workers_of(parent)
            for one in chosen if way != "one" else chosen[:1]:
                one.kill()
            killed[way] += bool(chosen)
            if way == "parent":
                break
        process.wait(SECONDS)
        descendants_end(seen)
        assert process.returncode in (0, -signal.SIGKILL)
        is_over = process.returncode == 0
        if is_over:
            assert rows_like(output) == expected
            finished += 1
    print(f"kills: {killed}, {finished} outputs as undisturbed")
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_all_within_ten_seconds_with_what_is_done(number: int, inbox: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    command = [*RUN, "--device", "cpu", "--gpus", "2", str(inbox), "-q", "questions.csv", "-o", str(output)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not output.exists() or output.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    seen = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    assert process.wait(10) == 128 + number
    descendants_end(seen)
    assert len(rows_of(output)) >= 1
    assert subprocess.run([*command, "--resume"], check=False).returncode == 0
    assert len(rows_of(output)) == len(Path("questions.csv").read_text().splitlines()) - 1


def test_the_tiny_model_answers_the_same_in_two_workers(inbox: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    command = [*RUN, "--device", "cpu", str(inbox), "-q", "questions.csv", "--split", "never"]
    subprocess.run([*command, "-o", str(one)], check=True)
    subprocess.run([*command, "-o", str(two), "--gpus", "2"], check=True)
    assert rows_of(two) == rows_of(one)
