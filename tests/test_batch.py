from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.batch import NullEngine, dry_run, run
from idefics_cli.config import MaxFailures, ModelSettings, OutputSettings, PageSettings, QuestionSettings, RunSettings
from idefics_cli.errors import OutputError, TooManyFailuresError
from idefics_cli.inputs import Inputs
from idefics_cli.records import Row
from idefics_cli.session import Session
from tests.fakes import FakeEngine

Png = Callable[..., Path]


@pytest.fixture
def documents(grey_png: Png, tmp_path: Path) -> list[str]:
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7 broken")
    return [str(grey_png("a.png", 40)), str(tmp_path / "b.pdf"), str(grey_png("c.png", 80))]


def settings(path: Path | None = None, **more: object) -> RunSettings:
    output = OutputSettings(path, **more)  # type: ignore[arg-type]
    return RunSettings(pages=PageSettings(workers=1), model=ModelSettings("tiny"), output=output)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_rows_are_written_and_told_of(documents: list[str], tmp_path: Path) -> None:
    notes: list[str] = []
    told: list[str] = []

    def on_start(inputs: Inputs, session: Session) -> None:
        notes.extend(inputs.notes)

    result = run(
        documents, ["one", "two"], settings(tmp_path / "out.csv"), io.StringIO(), engine=FakeEngine(),
        on_start=on_start, on_row=lambda row, progress: told.append(f"{progress.rows} {row.status}"),
    )  # fmt: skip
    written = rows_of(tmp_path / "out.csv")
    assert len(written) == len(told) == result.progress.rows == 6
    assert [row["status"] for row in written].count("failed") == result.stats.failed == result.progress.failed == 2
    assert any("2 questions x 3 documents = 6 rows" in note for note in notes)
    assert result.seconds > 0


def test_rows_go_to_stdout_where_no_file_is_named(documents: list[str]) -> None:
    stdout = io.StringIO()
    run(documents[:1], ["one"], settings(), stdout, engine=FakeEngine())
    assert next(csv.DictReader(io.StringIO(stdout.getvalue())))["answer"] == "one @40"


def test_a_resumed_run_asks_what_is_missing(documents: list[str], tmp_path: Path) -> None:
    path, engine = tmp_path / "out.csv", FakeEngine()
    run(documents[:1], ["one"], settings(path), io.StringIO(), engine=engine)
    with pytest.raises(OutputError):
        run(documents, ["one"], settings(path), io.StringIO(), engine=FakeEngine())
    again = FakeEngine()
    result = run(documents, ["one"], settings(path, resume=True), io.StringIO(), engine=again)
    assert result.progress.skipped == 1
    assert len(again.asked) == 1
    assert [row["document"] for row in rows_of(path)] == documents


def test_too_many_failures_end_the_run_with_the_rows_so_far(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    strict = dataclasses.replace(settings(path), max_failures=MaxFailures(count=1))
    with pytest.raises(TooManyFailuresError, match=r"2 of .* rows failed, .*unreadable"):
        run(documents, ["one", "two", "three"], strict, io.StringIO(), engine=FakeEngine())
    written = rows_of(path)
    assert [row["status"] for row in written].count("failed") == 2
    assert written[-1]["status"] == "failed"


def test_an_output_that_cannot_be_written_is_told_before_anything_is_asked(
    documents: list[str], tmp_path: Path
) -> None:
    engine, started = FakeEngine(), list[Inputs]()
    with pytest.raises(OutputError):
        run(
            documents, ["one"], settings(tmp_path / "no" / "such" / "folder" / "out.csv"), io.StringIO(), engine=engine,
            on_start=lambda inputs, session: started.append(inputs),
        )  # fmt: skip
    assert (engine.asked, started) == ([], [])


def test_a_limit_ends_the_run(documents: list[str], tmp_path: Path) -> None:
    limited = dataclasses.replace(settings(tmp_path / "out.csv"), questions=QuestionSettings(limit=2))
    assert run(documents, ["one", "two"], limited, io.StringIO(), engine=FakeEngine()).progress.rows == 2


def test_a_dry_run_prepares_every_page_and_asks_and_writes_nothing(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    found = dry_run(documents, ["one", "two"], settings(path))
    assert (found.progress.rows, found.progress.failed, found.progress.skipped) == (6, 2, 0)
    assert found.progress.pages >= 2
    ((words, count),) = found.failures.items()
    assert words.startswith(f"{documents[1]}: unreadable: ")
    assert count == 2
    assert found.seconds_per_row is None
    assert not path.exists()
    assert any("= 6 rows" in note for note in found.notes)


def test_a_dry_run_knows_what_is_there_and_refuses_what_a_run_refuses(documents: list[str], tmp_path: Path) -> None:
    path, rows = tmp_path / "out.csv", list[Row]()
    run(
        documents[:1], ["one"], dataclasses.replace(settings(path), model=ModelSettings("tiny", max_new_tokens=2)),
        io.StringIO(), on_row=lambda row, progress: rows.append(row),
    )  # fmt: skip
    with pytest.raises(OutputError):
        dry_run(documents, ["one"], settings(path))
    with pytest.raises(OutputError, match="max-new-tokens"):
        dry_run(documents, ["one"], settings(path, resume=True))
    same = dataclasses.replace(settings(path, resume=True), model=ModelSettings("tiny", max_new_tokens=2))
    found = dry_run(documents, ["one"], same)
    assert (found.progress.rows, found.progress.skipped) == (2, 1)
    assert found.seconds_per_row is not None


def test_a_null_engine_answers_with_nothing() -> None:
    engine = NullEngine(FakeEngine().info)
    engine.start()
    assert engine.submit(None).result().text == ""  # type: ignore[arg-type]
    engine.close()
