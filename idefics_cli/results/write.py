"""Writes rows as CSV or JSONL, each whole or not at all, and synced within a second."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import operator
import os
import re
import select
from collections.abc import Iterable, Mapping, Sequence

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.records import COLUMNS, Row
from idefics_cli.results.columns import BEFORE, output_columns, user_columns
from idefics_cli.results.sync import Sink, Syncer, file_size

_KEY_DIGITS = 32
_MOST_NOTES = 50
_LAST_BEFORE = BEFORE[-1]
_columns_of = operator.attrgetter(*COLUMNS)  # a driver of many workers writes tens of thousands of rows a second
_DEEPEST = 200  # levels of lists and mappings in a pass-through value that can't be written as it is
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")
_TO_QUOTE = re.compile(r'[",\x00-\x1f\x7f]|^\s|\s$')  # more than csv.writer quotes: a reader breaks rows at a lone \r


class RowFormatter:
    """Formats rows as lines of an output."""

    def __init__(self, form: Format, columns: Iterable[str], *, excel_safe: bool = False) -> None:
        """Take what `RowWriter` takes."""
        self.names = user_columns(columns)
        """The user's columns, and what they are called in the output."""
        self._form, self._excel_safe = form, excel_safe

    def line(self, row: Row) -> bytes:
        """Return a row's line, without the columns of the user that have no name here."""
        values = row_values(row, self.names)
        if self._form is Format.JSONL:
            return _encoded(json_line(values))
        texts = [cell_text(value) for value in values.values()]
        return _encoded(csv_line([_inert(text) for text in texts] if self._excel_safe else texts))

    def formatted(self, row: Row) -> Row:
        """Return a row that has its line, unless it has columns without a name here."""
        return dataclasses.replace(row, line=self.line(row)) if row.extra.keys() <= self.names.keys() else row


class RowWriter:
    """Writes rows to a sink."""

    def __init__(
        self, sink: Sink, form: Format, columns: Sequence[str], *, header: bool = True, excel_safe: bool = False
    ) -> None:
        """Begin to write.

        Args:
            sink: takes the bytes.
            form: CSV or JSONL.
            columns: the user's own; those of JSONL may grow.
            header: whether CSV begins with its header.
            excel_safe: whether an apostrophe goes before what a spreadsheet would run.

        Raises:
            OutputError: the header can't be written.

        """
        self.rows = 0
        self._sink, self._form = sink, form
        self._formatter = RowFormatter(form, columns, excel_safe=excel_safe)
        self._has_grown = False
        self._notes = {
            name: f"column {name!r} is {column!r} in the output, since {name!r} is one of its own"
            for name, column in self._formatter.names.items()
            if name != column
        }
        self._syncer = Syncer(sink)
        if form is Format.CSV and header:
            self._put(_encoded(csv_line(csv_header(columns, excel_safe=excel_safe))))

    @property
    def notes(self) -> list[str]:
        """What the user should know of the columns, as far as rows were written."""
        return list(self._notes.values())

    def write(self, row: Row) -> None:
        """Write one row.

        Raises:
            OutputError: it can't be written, or an earlier row could not be synced; the rows before it are whole.
            BrokenPipeError: nobody reads the output any more.
            ValueError: its key is none: an output with it could not be resumed.

        """
        if len(row.key) != _KEY_DIGITS or row.status not in ("ok", "failed"):
            raise ValueError(f"a row with key {row.key!r} and status {row.status!r}")
        if not row.extra.keys() <= self._formatter.names.keys():
            self._add_columns(row.extra)
        # A line that a worker has formatted knows nothing of columns that came since.
        self._put(row.line if row.line and not self._has_grown else self._formatter.line(row))
        self.rows += 1

    def sync(self) -> None:
        """Bring what is written to the disk.

        Raises:
            OutputError: it did not get there.

        """
        self._syncer.sync()

    def close(self) -> None:
        """Sync for the last time; the sink stays open.

        Raises:
            OutputError: the rows did not get to the disk.

        """
        self._syncer.close()

    def _add_columns(self, extra: Mapping[str, object]) -> None:
        names = self._formatter.names
        new = [name for name in extra if name not in names]
        if self._form is Format.JSONL:
            self._formatter.names, self._has_grown = user_columns(new, names), True
            return
        for name in new[: max(0, _MOST_NOTES - len(self._notes))]:
            self._notes.setdefault(
                name, f"column {name!r} is not in the output: it came after the header; --format jsonl takes it"
            )

    def _put(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        self._syncer.check()
        data = memoryview(line)
        try:
            while data:
                written = self._sink.write(data)  # type: ignore[arg-type]
                if written is None:
                    select.select([], [self._sink.fileno()], [])
                else:
                    data = data[written:]
        except BrokenPipeError:
            raise
        except OSError as error:
            _cut_back(self._sink, len(line) - len(data))
            raise OutputError(f"can't write the output: {error.strerror}; the rows before are whole") from error
        self._syncer.written()


def row_values(row: Row, names: Mapping[str, str] | None = None) -> dict[str, object]:
    """Return a row's values by column, in the order of the columns, numbers rounded to what they mean.

    Args:
        row: the row.
        names: the user's columns and what they are called in the output; None: all of the row, see `user_columns`.

    """
    names = user_columns(row.extra) if names is None else names
    values: dict[str, object] = {}
    for column, value in zip(COLUMNS, _columns_of(row), strict=True):
        values[column] = _rounded(column, value) if type(value) is float else value
        if column == _LAST_BEFORE:
            for own, name in names.items():
                values[name] = row.extra.get(own)
    return values


def json_line(values: Mapping[str, object]) -> str:
    """Format one JSONL record; numbers that JSON does not have (NaN, infinities) become null."""
    return _json(values) + "\n"


def csv_header(columns: Sequence[str], *, excel_safe: bool = False) -> list[str]:
    """Return the header of a CSV output, given the user's columns."""
    header = output_columns(columns)
    return [_inert(name) for name in header] if excel_safe else list(header)


def csv_line(texts: Iterable[str]) -> str:
    """Format one CSV record: every text comes back from csv and pandas as it went in."""
    search = _TO_QUOTE.search
    # Most texts are numbers, names or empty, which is seen faster than that nothing in them is to be quoted.
    cells = [
        text if not text or text.isalnum() or not search(text) else '"' + text.replace('"', '""') + '"'
        for text in texts
    ]
    return ",".join(cells) + "\n"


def cell_text(value: object) -> str:
    """Return a value as the text of a cell: JSON of a list or mapping, nothing of null and of what is no number."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[return-value]
    if kind is int:
        return str(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if kind is float:
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | Mapping):
        return _json(value)
    return str(value)


def _rounded(column: str, value: float) -> float:
    if not math.isfinite(value):
        return value
    # A product of probabilities may be tiny and is not 0.
    if column == "confidence":
        return float(f"{value:.4g}")
    return round(value, 2) if column.endswith("_ms") else value


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(_valid(value), ensure_ascii=False)


def _valid(value: object, depth: int = 0) -> object:
    """Put null for what JSON, or its readers, do not take."""
    if depth > _DEEPEST or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, Mapping):
        return {name: _valid(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item, depth + 1) for item in value]
    return value


def _inert(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text) else text


def _encoded(line: str) -> bytes:
    # A lone surrogate is no UTF-8: its escape is the same string in JSON, and readable in CSV.
    return line.encode("utf-8", "backslashreplace")


def _cut_back(sink: Sink, written: int) -> None:
    """Drop what was written of a row."""
    if written and (end := file_size(sink)) is not None:
        with contextlib.suppress(OSError):
            os.ftruncate(sink.fileno(), end - written)
            os.lseek(sink.fileno(), end - written, os.SEEK_SET)
