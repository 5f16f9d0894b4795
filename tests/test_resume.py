from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.results.resume import read_journal

HEADER = ["key", "answer", "status"]


def test_a_torn_last_row_is_cut_off_even_inside_quotes(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    whole = 'key,answer,status\na,"two\nlines",ok\nb,x,failed\n'
    for torn in ("", "c,y", 'c,"open\nquote', "c,y,o"):
        path.write_text(whole + torn)
        journal = read_journal(path, Format.CSV, HEADER, retry_failed=False)
        assert journal.keys == {"a", "b"}
        assert journal.kept == whole


def test_failed_rows_are_left_out_to_be_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("key,answer,status\na,x,ok\nb,,failed\n")
    assert read_journal(path, Format.CSV, HEADER, retry_failed=True).keys == {"a"}
    path.write_text('{"key": "a", "status": "ok"}\n{"key": "b", "status": "failed"}\n{"key": "c", "sta')
    assert read_journal(path, Format.JSONL, [], retry_failed=True).keys == {"a"}
    assert read_journal(path, Format.JSONL, [], retry_failed=False).keys == {"a", "b"}


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("key,answer\na,x\n")
    with pytest.raises(OutputError, match=r"out\.csv: its columns differ .*\(status\)"):
        read_journal(path, Format.CSV, HEADER, retry_failed=False)


def test_an_empty_output_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("")
    assert read_journal(tmp_path / "out.csv", Format.CSV, HEADER, retry_failed=False).kept == ""
