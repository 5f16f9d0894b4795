from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.cells import cell_len

from idefics_cli.batch import BatchResult
from idefics_cli.cli.console import set_up_messages
from idefics_cli.cli.report import RowTable, report_run, share_words
from idefics_cli.config import MessageSettings, OutputSettings, RunSettings
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.pipeline import Progress
from idefics_cli.records import Document, Job, Question, Row
from idefics_cli.rows import PendingRow, finished_row
from idefics_cli.workers.state import WorkerShare


def failed_row(document: str, question: str) -> Row:
    job = Job(Question(question, "q.csv:2"), Document(document, document))
    row = PendingRow(job, "0" * 32, (1,), failure=Failure(FailureKind.ENCRYPTED, "needs a password"))
    return finished_row(row, "tiny", "none")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_table_of_a_terminal_is_cut_to_its_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stdout = io.StringIO()
    stdout.fileno = lambda: 1  # type: ignore[method-assign]
    table = RowTable(stdout)
    row = failed_row("inbox/" * 20 + "日本語.pdf", "What is\nthe total? " * 20)
    table.print(row)
    table.print(dataclasses.replace(row, answer="12.50", confidence=0.5, status="ok", error=""))
    lines = stdout.getvalue().splitlines()
    assert len(lines) == 3
    assert all(cell_len(line) <= max(columns, 56) for line in lines)
    assert ".pdf" in lines[1]
    assert "12.50" in lines[2]
    assert "0.50" in lines[2]


def test_a_run_is_one_line_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    settings = RunSettings()
    set_up_messages(settings.messages)
    result = BatchResult(progress=Progress(skipped=1200), seconds=3.21)
    report_run(result, settings)
    assert capsys.readouterr().err == "stdout: 0 rows, 1,200 already answered, 0 failed, 3.2 s\n"
    result.kept_failed = 3
    report_run(result, settings)
    assert "0 rows, 1,200 kept (3 failed), 0 failed" in capsys.readouterr().err


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_run_names_what_failed_and_says_how_the_rest_is_listed(
    is_quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RunSettings(output=OutputSettings(Path("my answers.csv")), messages=MessageSettings(quiet=is_quiet))
    set_up_messages(settings.messages)
    result = BatchResult(seconds=3.21)
    for number in range(5):
        for question in ("one", "two")[: 1 + number % 2]:
            result.stats.add(failed_row(f"{number}.pdf", question))
    report_run(result, settings)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "my answers.csv: 7 rows, 7 failed (7 encrypted), 3.2 s"
    assert lines[1:3] == [
        "failed: 0.pdf: encrypted: needs a password",
        "failed: 1.pdf: encrypted: needs a password (2 rows)",
    ]
    assert len(lines) == 6
    for name in ("5.pdf", "6.pdf"):
        result.stats.add(failed_row(name, "one"))
    report_run(result, settings)
    *named, last = capsys.readouterr().err.splitlines()[1:]
    assert named == lines[1:]
    assert last == "failed: 2 more rows; idefics-cli status 'my answers.csv' --failed lists all"
    report_run(result, dataclasses.replace(settings, output=OutputSettings()))
    assert capsys.readouterr().err.splitlines()[-1] == "failed: 2 more rows"


def test_what_a_worker_did_is_counted_in_the_singular_and_the_plural() -> None:
    assert share_words(WorkerShare("w", 1, 1, 0.0, 0.0, 0)) == "w: 1 row, 1 page"
    assert share_words(WorkerShare("w", 2000, 0, 0.0, 0.0, 0)) == "w: 2,000 rows, 0 pages"
