from __future__ import annotations

import json
from pathlib import Path

import pytest

from idefics_cli.config import Format, RetryFailed
from idefics_cli.errors import FailureKind, OutputError
from idefics_cli.results.resume import read_journal

HEADER = ["key", "answer", "status", "error"]


def test_a_torn_last_row_is_cut_off_even_inside_quotes(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    whole = 'key,answer,status,error\na,"two\nlines",ok,\nb,x,failed,y\n'
    for torn in ("", "c,y", 'c,"open\nquote', "c,y,o"):
        path.write_text(whole + torn)
        journal = read_journal(path, Format.CSV, HEADER, retry_failed=None)
        assert journal.keys == {"a", "b"}
        assert journal.kept == whole
        assert journal.stays == len(whole.encode())


def test_failed_rows_are_left_out_to_be_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("key,answer,status,error\na,x,ok,\nb,,failed,encrypted: x\n")
    assert read_journal(path, Format.CSV, HEADER, retry_failed=RetryFailed.ALL).keys == {"a"}
    path.write_text('{"key": "a", "status": "ok"}\n{"key": "b", "status": "failed"}\n{"key": "c", "sta')
    assert read_journal(path, Format.JSONL, [], retry_failed=RetryFailed.ALL).keys == {"a"}
    assert read_journal(path, Format.JSONL, [], retry_failed=None).keys == {"a", "b"}


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("key,answer,error\na,x,\n")
    with pytest.raises(OutputError, match=r"out\.csv: its columns differ .*\(status\)"):
        read_journal(path, Format.CSV, HEADER, retry_failed=None)


def test_an_empty_output_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("")
    assert read_journal(tmp_path / "out.csv", Format.CSV, HEADER, retry_failed=None).kept == ""


@pytest.mark.parametrize("form", list(Format))
def test_passing_failures_are_told_from_lasting_ones(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "out"
    kinds = {kind: f"{kind}: words" for kind in FailureKind}
    rows = [{"key": kind, "answer": "", "status": "failed", "error": error} for kind, error in kinds.items()]
    if form is Format.CSV:
        path.write_text("".join(",".join(row) + "\n" for row in [HEADER, *(row.values() for row in rows)]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = read_journal(path, form, HEADER, retry_failed=RetryFailed.PASSING)
    assert set(kinds) - journal.keys == {"timed-out", "render-failed", "out-of-memory", "model-error"}
    assert journal.stays is None
    assert read_journal(path, form, HEADER, retry_failed=RetryFailed.ALL).keys == frozenset()
    assert read_journal(path, form, HEADER, retry_failed=None).keys == set(kinds)
