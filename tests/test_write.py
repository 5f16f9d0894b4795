from __future__ import annotations

import csv
import io
import json
import os
import resource
import time
from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.records import COLUMNS, Row
from idefics_cli.results.write import RowWriter, replacing, user_columns


def row(**changes: object) -> Row:
    values: dict[str, object] = {"key": "k", "status": "ok", "answer": "a"}
    for name in COLUMNS:
        values.setdefault(name, None if name.endswith("_ms") else "")
    values |= changes
    return Row(**values)  # type: ignore[arg-type]


def test_csv_holds_commas_quotes_and_newlines() -> None:
    stream = io.StringIO()
    writer = RowWriter(stream, Format.CSV, ["note"])
    nasty = 'one, "two"\nthree'
    writer.write(row(answer=nasty, confidence=0.123456, latency_ms=1.239, split=True, extra={"note": {"a": [1]}}))
    header, cells = csv.reader(io.StringIO(stream.getvalue()))
    values = dict(zip(header, cells, strict=True))
    assert header == [*COLUMNS, "note"]
    assert (values["answer"], values["confidence"], values["latency_ms"]) == (nasty, "0.1235", "1.24")
    assert (values["split"], values["note"], values["raster_ms"]) == ("true", '{"a": [1]}', "")


def test_jsonl_keeps_types_and_columns_that_come_later() -> None:
    stream = io.StringIO()
    writer = RowWriter(stream, Format.JSONL, [])
    writer.write(row(extra={"n": 3, "answer": "theirs"}))
    values = json.loads(stream.getvalue())
    assert (values["n"], values["answer"], values["answer_input"], values["raster_ms"]) == (3, "a", "theirs", None)


def test_a_users_column_that_bears_our_name_gets_a_suffix() -> None:
    assert user_columns(["note", "answer", "answers", "answer_input"]) == {
        "note": "note",
        "answer": "answer_input_input",
        "answers": "answers",
        "answer_input": "answer_input",
    }
    assert RowWriter(io.StringIO(), Format.CSV, ["status", "x"]).renamed == {"status": "status_input"}


def test_a_full_disk_is_an_output_error() -> None:
    stream = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails again
    with pytest.raises(OutputError, match="No space left"):
        RowWriter(stream, Format.CSV, []).write(row())
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as stream:
        stream.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.csv"]
    with pytest.raises(OutputError, match="No such file"), replacing(tmp_path / "gone" / "out.csv"):
        pass


def test_excel_safe_leaves_no_cell_that_a_spreadsheet_would_run() -> None:
    stream = io.StringIO()
    writer = RowWriter(stream, Format.CSV, ["note"], excel_safe=True)
    writer.write(row(answer="=1+1", question="@SUM(A1)", error="-12.50", warning="+4 %", extra={"note": "\t=x"}))
    header, cells = csv.reader(io.StringIO(stream.getvalue()))
    values = dict(zip(header, cells, strict=True))
    assert (values["answer"], values["question"], values["note"]) == ("'=1+1", "'@SUM(A1)", "'\t=x")
    assert (values["error"], values["warning"]) == ("-12.50", "'+4 %")  # a number is no formula


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "out.csv"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OutputError, match="rows are whole"), path.open("w", newline="") as stream:
            writer = RowWriter(stream, Format.CSV, [])
            for number in range(100):
                writer.write(row(answer=f"{number} {'x' * 90}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = list(csv.reader(io.StringIO(path.read_text())))
    assert 10 < len(lines) < 40
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert path.read_text().endswith("\n")


def test_a_row_is_synced_within_a_second_though_no_other_comes(tmp_path: Path) -> None:
    with (tmp_path / "out.csv").open("w", newline="") as stream:
        writer = RowWriter(stream, Format.CSV, [])
        writer.write(row())
        written = writer._synced
        deadline = time.monotonic() + 5
        while writer._synced == written:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    writer.sync()  # a closed file has nothing left to sync
