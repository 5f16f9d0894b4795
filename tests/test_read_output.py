from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import InputError
from idefics_cli.records import COLUMNS
from idefics_cli.results.read import OutputReader
from tests.output_rows import failed, key, row, write_output
from tests.test_write import NASTY

ENDINGS = ["csv", "jsonl"]


def output(tmp_path: Path, ending: str) -> Path:
    path = tmp_path / f"out.{ending}"
    rows = [row(key=key(number), question=text, extra={"note": text}) for number, text in enumerate(NASTY)]
    write_output(path, [*rows, failed(99)], ["note"], format=Format(ending))
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_row_that_was_written_is_read(tmp_path: Path, ending: str) -> None:
    path = output(tmp_path, ending)
    reader = OutputReader(path)
    rows = list(reader)
    assert [one.text("question") for one in rows] == [*NASTY, ""]
    assert [one.text("note") for one in rows[:-1]] == NASTY
    assert [one.text("key") for one in rows[:3]] == [key(0), key(1), key(2)]
    assert (rows[-1].is_failed, rows[-1].failure_kind, rows[0].failure_kind) == (True, "encrypted", "")
    assert reader.header + b"".join(one.raw for one in rows) == path.read_bytes()
    assert (reader.form, reader.end, reader.rows) == (ending, path.stat().st_size, len(rows))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_row_torn_anywhere_is_left_out(tmp_path: Path, ending: str) -> None:
    """Inside a character, a quoted line break, a pair of quotes, or before its line end."""
    path = tmp_path / f"out.{ending}"
    texts = ["x", 'é "two"\n😀\u2028\r\nlines']
    write_output(path, [row(key=key(i), question=text) for i, text in enumerate(texts)], format=Format(ending))
    data = path.read_bytes()
    first = next(iter(OutputReader(path)))
    start = data.index(first.raw) + len(first.raw)
    for end in range(start, len(data)):
        path.write_bytes(data[:end])
        reader = OutputReader(path)
        assert [one.text("question") for one in reader] == ["x"], end
        assert reader.end == start
    for end in range(start - len(first.raw)):
        path.write_bytes(data[:end])
        assert list(OutputReader(path)) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_zeros_after_a_power_failure_are_a_torn_row(tmp_path: Path, ending: str) -> None:
    path = output(tmp_path, ending)
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"\0" * 5000)
    reader = OutputReader(path)
    assert len(list(reader)) == len(NASTY) + 1
    assert reader.end == size


def test_an_empty_file_has_no_rows_and_no_format(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.touch()
    reader = OutputReader(path)
    assert list(reader) == []
    assert (reader.form, reader.end) == (None, 0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"question,document\nWhat?,a.pdf\n", "no column 'page'"),
        (b"answer\n", "no column 'document'"),
        (",".join(COLUMNS[::-1]).encode() + b"\n", "another order"),
        (b'{"question": "What?"}\n', "line 1 has no 'document'"),
        (b'{"question": "What?"}\n{"question": "', "line 1 has no 'document'"),
        (b'{"question": "no line end"}', "holds no row"),
        (b"a text without a line end", "holds no row"),
        (b"document", ""),
        (b"{not json}\n", "line 1 is no JSON"),
        (b"{" * 100_000 + b"\n", "line 1 is no JSON"),
        (b'{"a":' * 100_000 + b"\n", "line 1 is no JSON"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "no header"),
        (b"PK\x03\x04\n", "no column"),
        (b"[1, 2]\n", "no column"),
        (b"\n\n", "no column"),
        ("caf\xe9\n".encode("cp1252"), "no header"),
    ],
)
def test_what_is_no_output_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(data)
    if not why:  # the start of our header
        assert list(OutputReader(path)) == []
        return
    with pytest.raises(InputError, match=f"not an output of this version of idefics-cli: .*{why}"):
        list(OutputReader(path))


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    path = output(tmp_path, "csv")
    whole = path.read_bytes()
    for added in (b"short,row\n", b"\n", b'"a"b\n', b"\xff" * 10 + b"\n", b"a\rb\n", b"," * len(COLUMNS) + b"\n"):
        path.write_bytes(whole + added)
        with pytest.raises(InputError, match=rf"out\.csv: not an output .*row {len(NASTY) + 2}"):
            list(OutputReader(path))
    path = output(tmp_path, "jsonl")
    with path.open("a") as stream:
        stream.write(json.dumps(dict.fromkeys(COLUMNS, "x")) + "\n")
    with pytest.raises(InputError, match="no key of 32 digits"):
        list(OutputReader(path))


def test_a_file_that_a_spreadsheet_saved_again_is_read(tmp_path: Path) -> None:
    """With a byte-order mark, and CRLF."""
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(1), question='a\n"b"')])
    rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows(rows)
    reader = OutputReader(path)
    assert [one.text("question") for one in reader] == ['a\n"b"']
    assert reader.end == path.stat().st_size
    path = tmp_path / "out.jsonl"
    write_output(path, [row(key=key(1))], format=Format.JSONL)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(list(OutputReader(path))) == 1


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read: No such file"):
        list(OutputReader(tmp_path / "gone.csv"))
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        list(OutputReader(tmp_path))


def test_costs_add_up(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(vision_ms=10.0, decode_ms=2.5)])
    assert [one.cost_ms for one in OutputReader(path)] == [12.5]


def test_a_quote_left_open_in_the_middle_is_no_torn_row(tmp_path: Path) -> None:
    """All rows after it would be cut off."""
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(number), question='"quoted"') for number in range(9)])
    path.write_text(path.read_text().replace('"quoted"', "quoted", 1))
    with pytest.raises(InputError, match=r"row \d+ (has a quote that is not closed|is no CSV)"):
        list(OutputReader(path))
    write_output(path, [row(key=key(number), question="a,b") for number in range(9)], overwrite=True)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:4], lines[4].replace('a,b"', "a,b"), *lines[5:]]))
    with pytest.raises(InputError, match="row 4 has a quote that is not closed"):
        list(OutputReader(path))
