from __future__ import annotations

import csv
import io
import json
import os
import resource
import threading
from pathlib import Path

import pandas
import pytest

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.records import COLUMNS, Row
from idefics_cli.results.lines import RowFormatter, row_values
from idefics_cli.results.replace import open_unbuffered
from idefics_cli.results.write import RowWriter
from tests.output_rows import row

NASTY = [
    "a\rb", "\r", "a\r\nb", "a\nb", "a\x00b", "a\x0bb", "a\x0cb", "a\x1ab", "a\x1cb", "a\x85b", "a\u2028b", "a\u2029b", '"', '""',
    'a"b', ",", ";", "\t", " a ", "\u00a0", "", "\ufeffx", "nan", "NA", "null", "None", "'x", "\\", "\\n", "#x", "=1", "1,5", "0012",
    "é", "😀", "x" * 300_000, "\x7f", "~", "a\x1eb", "\u200b",
]  # fmt: skip


def written(
    path: Path, rows: list[Row], form: Format = Format.CSV, columns: tuple[str, ...] = (), excel_safe: bool = False
) -> bytes:
    with open_unbuffered(path) as stream:
        writer = RowWriter(stream, form, columns, excel_safe=excel_safe)
        for one in rows:
            writer.write(one)
        writer.close()
    return path.read_bytes()


def test_every_string_comes_back_from_csv_pandas_and_json(tmp_path: Path) -> None:
    rows = [row(question=text, answer=text, document=text, extra={"note": text}) for text in NASTY]
    columns = ("question", "answer", "document", "note")
    path = tmp_path / "out.csv"
    text = written(path, rows, columns=("note",)).decode()
    csv.field_size_limit(1_000_000)
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [[one[name] for name in columns] for one in read] == [[text] * 4 for text in NASTY]
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert frame[list(columns)].to_numpy().tolist() == [[text] * 4 for text in NASTY]
    lines = written(tmp_path / "out.jsonl", rows, Format.JSONL).decode().split("\n")
    assert [json.loads(line)["question"] for line in lines[:-1]] == NASTY


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    rows = [row(document="in\udcffbox", question="a\ud800b")]
    assert json.loads(written(tmp_path / "out.jsonl", rows, Format.JSONL))["question"] == "a\ud800b"
    assert rb"in\udcffbox" in written(tmp_path / "out.csv", rows)


def test_types_and_numbers(tmp_path: Path) -> None:
    one = row(confidence=0.123456, latency_ms=1.239, split=True, id=7, extra={"note": {"a": [1]}, "flag": False})
    header, cells = csv.reader(written(tmp_path / "out.csv", [one], columns=("note", "flag")).decode().splitlines())
    values = dict(zip(header, cells, strict=True))
    assert (values["confidence"], values["latency_ms"], values["raster_ms"]) == ("0.1235", "1.24", "")
    assert (values["split"], values["flag"], values["note"], values["id"]) == ("true", "false", '{"a": [1]}', "7")
    stored = json.loads(written(tmp_path / "out.jsonl", [one], Format.JSONL))
    assert (stored["id"], stored["note"], stored["raster_ms"], stored["split"]) == (7, {"a": [1]}, None, True)
    assert list(stored)[list(stored).index("id") + 1] == "note"
    assert list(stored)[-1] == "key"


@pytest.mark.parametrize("value", [0.00004, 1.23456e-9, 5e-324, 0.99995, 1.0])
def test_a_small_confidence_is_never_zero(value: float) -> None:
    shown = row_values(row(confidence=value))["confidence"]
    assert isinstance(shown, float)
    assert shown == pytest.approx(value, rel=1e-3)
    assert shown > 0


def test_what_is_no_number_leaves_as_null(tmp_path: Path) -> None:
    extra = {"a": float("nan"), "b": [1e999, {"c": -1e999}], "d": 1.5}
    stored = json.loads(
        written(tmp_path / "out.jsonl", [row(extra=extra)], Format.JSONL), parse_constant=lambda name: pytest.fail(name)
    )
    assert (stored["a"], stored["b"], stored["d"]) == (None, [None, {"c": None}], 1.5)
    header, cells = csv.reader(
        written(tmp_path / "out.csv", [row(extra=extra)], columns=("a", "b", "d")).decode().splitlines()
    )
    values = dict(zip(header, cells, strict=True))
    assert (values["a"], values["b"], values["d"]) == ("", '[null, {"c": null}]', "1.5")


def test_deeply_nested_values_do_not_end_a_run(tmp_path: Path) -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for form in Format:
        assert written(tmp_path / "out", [row(extra={"deep": deep})], form, ("deep",)).endswith(b"\n")


def test_columns_are_renamed_or_left_out_with_one_note_each() -> None:
    class Kept(io.BytesIO):
        def fileno(self) -> int:
            raise OSError

    sink = Kept()
    writer = RowWriter(sink, Format.CSV, ["status", "x"])
    for _ in range(3):
        writer.write(row(extra={"status": "theirs", "late": 1}))
    assert len(writer.notes) == 2
    assert "'status' is 'status_input'" in writer.notes[0]
    assert "'late' is not in the output" in writer.notes[1]
    sink = Kept()
    writer = RowWriter(sink, Format.JSONL, ["key_input"])
    writer.write(row(extra={"key_input": 1}))
    writer.write(row(extra={"key_input": 1, "key": 2}))
    first, second = map(json.loads, sink.getvalue().splitlines())
    assert (first["key_input"], second["key_input"], second["key_input_input"]) == (1, 1, 2)
    assert second["key"] == first["key"]


def test_excel_safe_leaves_no_cell_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    one = row(answer="=1+1", question="@SUM(A1)", error="-12.50", warning="+4 %", extra={"=note": "\t=x"})
    data = written(tmp_path / "out.csv", [one], columns=("=note",), excel_safe=True)
    header, cells = csv.reader(io.StringIO(data.decode(), newline=""))
    values = dict(zip(header, cells, strict=True))
    assert (values["answer"], values["question"], values["'=note"]) == ("'=1+1", "'@SUM(A1)", "'\t=x")
    assert (values["error"], values["warning"]) == ("-12.50", "'+4 %")  # a number is no formula


def test_a_full_device_is_an_output_error() -> None:
    with open_unbuffered(Path("/dev/full")) as stream, pytest.raises(OutputError, match="No space left"):
        RowWriter(stream, Format.CSV, []).write(row())


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "out.csv"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OutputError, match="rows before are whole"):
            written(path, [row(answer=f"{number} {'x' * 90}") for number in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = path.read_text()
    lines = list(csv.reader(text.splitlines()))
    assert 5 < len(lines) < 40
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert text.endswith("\n")


def test_a_pipe_that_takes_part_of_a_row_gets_all_of_it() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    read = bytearray()

    def drain() -> None:
        with io.FileIO(reading) as stream:
            while data := stream.read(65536):
                read.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    with io.FileIO(writing, "wb") as stream:
        writer = RowWriter(stream, Format.JSONL, [])
        writer.write(row(answer="x" * 500_000))
        writer.close()
    reader.join(30)
    assert json.loads(read)["answer"] == "x" * 500_000


def test_a_row_that_could_not_be_resumed_is_a_bug(tmp_path: Path) -> None:
    for bad in (row(key=""), row(status="answered")):
        with pytest.raises(ValueError, match="a row with key"):
            written(tmp_path / "out.csv", [bad])


@pytest.mark.parametrize("form", list(Format))
def test_lines_that_workers_have_formatted_are_the_writers_own(form: Format, tmp_path: Path) -> None:
    formatter = RowFormatter(form, ["mine"], excel_safe=form is Format.CSV)
    rows = [
        row(extra={"mine": value}, answer=answer) for value, answer in ((1, '=a,"b"'), ("é\ud800", "x"), (None, ""))
    ]
    later = row(extra={"mine": "m", "new": 1})
    contents: list[bytes] = []
    for given in ([*rows, later, rows[0]], [formatter.formatted(one) for one in [*rows, later, rows[0]]]):
        assert all(bool(one.line) == bool(contents) for one in given[:3])
        path = tmp_path / f"{len(contents)}"
        with path.open("wb", buffering=0) as stream:
            writer = RowWriter(stream, form, ["mine"], excel_safe=form is Format.CSV)
            for one in given:
                writer.write(one)
            writer.close()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert formatter.formatted(later).line == b"", "a column that came later"
