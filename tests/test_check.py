from __future__ import annotations

import os
from pathlib import Path

import pytest

from idefics_cli.config import Format, OutputSettings, RetryFailed
from idefics_cli.errors import OutputBusyError, OutputError, UsageError
from idefics_cli.results.check import check_output, format_of, read_state
from idefics_cli.results.lock import locked
from tests.output_rows import VALUES, failed, key, row, write_output


def refusal(path: Path, columns: tuple[str, ...] = (), values: dict[str, str] | None = None, **settings: object) -> str:
    """What is said of an output; it must be said early and late alike, and the file must stay as it is."""
    before = path.read_bytes() if path.is_file() else None
    given = OutputSettings(path, **settings)  # type: ignore[arg-type]
    with pytest.raises(OutputError) as early:
        check_output(given, columns, values or VALUES)
    with pytest.raises(OutputError) as late:
        read_state(given, columns, values or VALUES)
    assert str(early.value) == str(late.value)
    assert before == (path.read_bytes() if path.is_file() else None)
    return str(early.value)


def test_the_ending_names_the_format() -> None:
    names = {"a.csv": "csv", "a.JSONL": "jsonl", "a.ndjson": "jsonl", "a": "csv", "a.txt": "csv", "/dev/null": "csv"}
    assert {name: format_of(Path(name)) for name in names} == names
    assert format_of(None) is Format.CSV


@pytest.mark.parametrize("name", ["a.json", "a.tsv", "a.XLSX", "a.csv.gz", "a.parquet"])
def test_endings_of_formats_that_are_not_written_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"--format csv or jsonl"):
        format_of(Path(name))


@pytest.mark.parametrize("form", list(Format))
def test_what_is_not_an_output_is_refused_and_stays(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "questions"
    for text in ("question\nWhat?\n", '{"question": "What?"}\n', "a text without a line end", "\n"):
        path.write_text(text)
        for resume in (True, False):
            words = refusal(path, format=form, resume=resume)
            assert "not an output of this version of idefics-cli" in words
            assert "--overwrite replaces it" in words


def test_an_output_is_gone_on_with_only_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row()])
    assert "exists; --resume goes on with it" in refusal(path)
    settings = OutputSettings(path, resume=True)
    check_output(settings, (), VALUES)
    assert read_state(settings, (), VALUES).rows == 1
    assert read_state(OutputSettings(path, overwrite=True), (), VALUES).rows == 0


def test_an_output_without_rows_is_gone_on_with_anyway(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [])
    assert path.read_text().startswith("document,page,")
    check_output(OutputSettings(path), (), VALUES)
    path.write_text("")
    check_output(OutputSettings(path), (), VALUES)
    assert read_state(OutputSettings(path), (), VALUES).rows == 0


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_output(path, [row()], format=Format.JSONL)
    assert "holds jsonl, not csv; go on with --format jsonl" in refusal(path, resume=True)


def test_other_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(extra={"a": 1, "b": 2})], ["a", "b"])
    assert "columns differ from this run's (b, c)" in refusal(path, ("a", "c"), resume=True)
    assert "(their order)" in refusal(path, ("b", "a"), resume=True)


def test_other_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row()])
    words = refusal(path, values=VALUES | {"--split": "never"}, resume=True)
    assert "other settings (--split)" in words
    assert "--overwrite" in words
    check_output(OutputSettings(path, resume=True), (), None)


def test_settings_of_a_later_row_are_found_too(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(), row(key=key(1), settings="0" * 16 + ".0000")])
    with pytest.raises(OutputError, match=r"other settings \(--prompt, --split\)"):
        read_state(OutputSettings(path, resume=True), (), VALUES)


def test_folders_and_places_that_are_not_there(tmp_path: Path) -> None:
    assert "a folder; name a file" in refusal(tmp_path)
    with pytest.raises(OutputError, match="no such folder"):
        check_output(OutputSettings(tmp_path / "gone" / "out.csv"), (), VALUES)
    with pytest.raises(OutputError, match="null"):
        check_output(OutputSettings(tmp_path / "a\0b"), (), VALUES)
    with pytest.raises(OutputError, match="can't be resumed"):
        check_output(OutputSettings(Path("/dev/null"), resume=True), (), VALUES)
    check_output(OutputSettings(tmp_path / "new.csv"), (), VALUES)
    check_output(OutputSettings(Path("/dev/null")), (), VALUES)
    check_output(OutputSettings(None), (), VALUES)
    assert os.listdir(tmp_path) == []


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    questions, link, hard = tmp_path / "q.jsonl", tmp_path / "link.jsonl", tmp_path / "hard.jsonl"
    write_output(questions, [row()], format=Format.JSONL)  # even where it could be one
    link.symlink_to(questions)
    hard.hardlink_to(questions)
    for path in (questions, link, hard):
        for settings in (
            OutputSettings(path, Format.JSONL, resume=True),
            OutputSettings(path, Format.JSONL, overwrite=True),
        ):
            with pytest.raises(OutputError, match="is an input of this run"):
                check_output(settings, (), VALUES, [tmp_path / "gone", questions])


def test_the_state_leaves_out_what_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(0), vision_ms=2000.0), failed(1), failed(2, "timed-out: page 1")])
    before = path.read_bytes()
    state = read_state(OutputSettings(path, resume=True, retry_failed=RetryFailed.TRANSIENT), (), VALUES)
    assert [number for number in range(4) if state.answered.take(key(number))] == [0, 1]
    assert state.to_retry == 1
    assert path.read_bytes() == before


def test_a_run_that_holds_the_output_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with locked(path):
        with pytest.raises(OutputBusyError, match="held by process"):
            check_output(OutputSettings(path), (), VALUES)
        assert read_state(OutputSettings(path), (), VALUES).rows == 0
    assert os.listdir(tmp_path) == []
