from __future__ import annotations

import json

import pytest

from tests.conftest import Run


def test_bench_measures_every_way_and_reports_it_as_json(cli: Run) -> None:
    done = cli("bench", "--pages", "2", "--max-new-tokens", "3", "--device", "cpu", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    ways = [(m["way"], m["split"], m["questions_a_page"]) for m in report["measurements"]]
    assert ways == [
        ("stock snippet", True, 1), ("stock snippet", False, 1), ("stock loop", True, 1), ("stock loop", False, 1),
        ("engine", True, 1), ("engine", False, 1), ("engine", True, 10), ("engine", False, 10),
        ("engine from disk", True, 1),
    ]  # fmt: skip
    for measured in report["measurements"]:
        assert measured["seconds"] > 0
        assert measured["pages_a_second"] == pytest.approx(measured["pages"] / measured["seconds"])
    engine = report["measurements"][4]
    stages = engine["pages"] * (engine["vision_ms"] + engine["prefill_ms"]) + 2 * engine["decode_step_ms"]
    assert stages <= engine["seconds"] * 1e3
    assert report["matrix_tflops"] > 0
    assert report["first_answer_s"] > 0
    assert "pages/s" in done.stderr


def test_bench_prints_a_table(cli: Run) -> None:
    done = cli("bench", "--pages", "1", "--max-new-tokens", "2", "--device", "cpu", "--workers", "1", "--no-stock")
    assert done.returncode == 0, done.stderr
    assert "engine from disk" in done.stdout
    assert "tiny, float32" in done.stdout


def test_bench_refuses_what_can_not_be_measured(cli: Run) -> None:
    assert cli("bench", "--random-weights", "--model", "tiny").returncode == 2
    done = cli("bench", "--random-weights", "--device", "cpu")
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr
