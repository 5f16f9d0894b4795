from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest

from idefics_cli.cli.output import format_of, opened_output
from idefics_cli.config import Format, OutputSettings
from idefics_cli.errors import OutputError
from idefics_cli.rows import row_key
from tests.test_rows import to_be
from tests.test_write import row

HERE = {"--prompt": "{question}", "--split": "auto 11"}


def never() -> Mapping[str, str]:
    raise AssertionError("no row is there that could have been answered otherwise")


def write(settings: OutputSettings, key: str, settings_here: Mapping[str, str] = HERE) -> frozenset[str]:
    with opened_output(settings, ["note"], io.StringIO(), lambda: settings_here) as (writer, journal):
        writer.write(row(key=key))
        return journal.keys


def test_the_ending_names_the_format() -> None:
    assert [format_of(Path(name)) for name in ("a.csv", "a.JSONL", "a.ndjson", "a")] == ["csv", "jsonl", "jsonl", "csv"]
    assert format_of(None) is Format.CSV


@pytest.mark.parametrize("form", list(Format))
def test_rows_are_appended_to_those_that_stay(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "out"
    first, second = (row_key(to_be(), digest, HERE) for digest in ("a", "b"))
    assert write(OutputSettings(path, form), first) == frozenset()
    with pytest.raises(OutputError, match="--resume goes on with it"):
        write(OutputSettings(path, form), second)
    before = path.read_text()
    path.write_text(before + "torn")
    assert write(OutputSettings(path, form, resume=True), second) == {first}
    assert path.read_text().startswith(before)
    assert len(path.read_text().splitlines()) == (3 if form is Format.CSV else 2)
    with pytest.raises(OutputError, match=r"other settings \(--split\)"):
        write(OutputSettings(path, form, resume=True), second, HERE | {"--split": "never"})
    assert write(OutputSettings(path, form, overwrite=True), second) == frozenset()
    assert len(path.read_text().splitlines()) == (2 if form is Format.CSV else 1)


def test_settings_are_not_asked_for_before_rows_are_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    later = OutputSettings(tmp_path / "b.csv", resume=True)
    for settings in (OutputSettings(path), OutputSettings(path, overwrite=True), later):
        with opened_output(settings, [], io.StringIO(), never) as (writer, _):
            writer.write(row())


def test_folders_and_places_that_can_not_be_written_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone" / "out.csv"):
        with pytest.raises(OutputError), opened_output(OutputSettings(path), [], io.StringIO(), never):
            pass
