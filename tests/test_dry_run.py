from __future__ import annotations

from pathlib import Path

from tests.conftest import SAMPLES, Run

COMMAND = ("run", SAMPLES / "documents", "-q", SAMPLES / "questions.csv", "--model", "tiny")


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    done = cli(*COMMAND, "-o", output, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not output.exists()
    said = " ".join(done.stdout.split())
    assert "rows to ask 63" in said
    assert "rows that are there 0" in said
    assert "no earlier rows" in said

    assert cli(*COMMAND, "-o", output, "--limit", "6").returncode == 0
    before = output.read_text()
    said = " ".join(cli(*COMMAND, "-o", output, "--resume", "--dry-run").stdout.split())
    assert "rows to ask 57" in said
    assert "rows that are there 6" in said
    assert "an earlier row" in said
    assert output.read_text() == before


def test_the_exit_code_is_the_inputs(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "q.csv").write_text("question,document\nWho?,bad.png\n")
    done = cli("run", "-q", tmp_path / "q.csv", "--model", "tiny", "--dry-run")
    assert done.returncode == 6
    assert "bad.png: unsupported" in done.stdout
    assert cli("run", "-q", tmp_path / "gone.csv", "--model", "tiny", "--dry-run").returncode == 3
