"""SIGKILL at random moments, each followed by --resume: the rows end up as those of an undisturbed run."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SAMPLES

TIMINGS = {"raster_ms", "prepare_ms", "vision_ms", "prefill_ms", "decode_ms", "latency_ms", "batch_size"}
COMMAND = [sys.executable, "-m", "idefics_cli", "run", str(SAMPLES / "documents"), "--model", "tiny", "--quiet"]


def content(path: Path) -> list[dict[str, str]]:
    """The rows of an output, timings aside; confidence to three digits, since batches round differently."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(stream)]
    for row in rows:
        row["confidence"] = f"{float(row['confidence']):.3f}"
    return rows


def run_and_kill(output: Path, seconds: float) -> bool:
    """Start or resume a run and kill it after so long; says whether it had ended by itself."""
    command = [*COMMAND, "-q", str(SAMPLES / "questions.csv"), "-o", str(output), "--resume"]
    process = subprocess.Popen(command)
    try:
        assert process.wait(seconds) == 0
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_runs_end_like_one_that_was_left_alone(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    undisturbed = tmp_path / "undisturbed.csv"
    subprocess.run([*COMMAND, "-q", str(SAMPLES / "questions.csv"), "-o", str(undisturbed)], check=True)
    expected = content(undisturbed)
    killed = finished = 0
    while killed < kills:
        output = tmp_path / f"run-{finished}.csv"
        # Loading takes some three seconds: about half of the kills come while rows are being written.
        if not run_and_kill(output, rng.uniform(0.5, 8.0)):
            killed += 1
            continue
        assert content(output) == expected
        finished += 1
    output = tmp_path / f"run-{finished}.csv"
    while not run_and_kill(output, 300.0):
        pass
    assert content(output) == expected
