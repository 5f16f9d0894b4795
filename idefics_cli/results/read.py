"""Reads an output row by row, and refuses what is not one."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from idefics_cli.config import Format
from idefics_cli.errors import InputError
from idefics_cli.records import COLUMNS, COST_COLUMNS
from idefics_cli.results.columns import BEFORE, own_columns
from idefics_cli.results.openai_batch import is_batch_line, looks_like_batch, row_values_of

_BUFFER = 1 << 20
_BOM = b"\xef\xbb\xbf"
_OURS = frozenset(COLUMNS)
_ROW_END = re.compile(rb",[0-9a-f]{32}\r?\n")
_CSV_START = ",".join(BEFORE).encode()
_decode = json.JSONDecoder().raw_decode  # what json.loads calls, without what it does around it: there may be millions
_JSONL_START = json.dumps({COLUMNS[0]: ""}).removesuffix('""}').encode()


class StoredRow(NamedTuple):
    """One row of an output."""

    values: dict[str, Any]
    """By column: texts in CSV, else JSON values."""
    raw: bytes
    """As it stands in the file, line end included."""
    custom_id: str = ""
    """Of a line in the OpenAI batch form."""

    def text(self, column: str) -> str:
        """Return a column's value as text; empty for null."""
        value = self.values[column]
        return "" if value is None else str(value)

    @property
    def is_failed(self) -> bool:
        """Whether it has no answer."""
        return bool(self.values["status"] == "failed")

    @property
    def failure_kind(self) -> str:
        """The first word of `error`: a FailureKind; empty for an answered row."""
        return self.text("error").partition(":")[0] if self.is_failed else ""

    @property
    def cost_ms(self) -> float:
        """The sum of the cost columns; 0 where they don't say what the model took, as those of a server.

        Raises:
            ValueError or TypeError: one is no number.

        """
        if all(self.values[name] in ("", None) for name in ("vision_ms", "prefill_ms", "decode_ms")):
            return 0.0
        return sum([float(cost) for name in COST_COLUMNS if (cost := self.values[name])])


class OutputReader:
    """Iterates over the whole rows of an output; a last row that is cut off is left out.

    Iterating raises InputError when the file can't be read or is not an output of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.form: Format | None = None
        """As its content shows; None of an empty file. Known once the iteration has begun."""
        self.columns: tuple[str, ...] = ()
        """Of CSV: all columns."""
        self.header = b""
        """Of CSV: its first line."""
        self.rows = 0
        """Rows read so far."""
        self.end = 0
        """Bytes of the header and the rows read so far: at last, of all that is whole."""
        self._record = b""
        self._torn = b""

    @property
    def is_cut(self) -> bool:
        """Whether a last row was left out, since it is not whole; known once the iteration has ended."""
        return bool(self._torn.strip(b"\0"))

    def __iter__(self) -> Iterator[StoredRow]:
        """Read the file from its start."""
        self.rows = self.end = 0
        self._torn = b""
        csv.field_size_limit(sys.maxsize)
        try:
            with self.path.open("rb", buffering=_BUFFER) as stream:
                start = stream.read(4).removeprefix(_BOM)
                stream.seek(0)
                if start:
                    self.form = Format.JSONL if start.startswith(b"{") else Format.CSV
                yield from self._jsonl_rows(stream) if self.form is Format.JSONL else self._csv_rows(stream)
        except OSError as error:
            raise InputError(f"{self.path}: can't be read: {error.strerror}") from error

    def _csv_rows(self, stream: IO[bytes]) -> Iterator[StoredRow]:
        records = self._csv_records(stream)
        self.header = next(records, b"")
        if not self.header:
            torn = self._torn.removeprefix(_BOM)
            self._check_torn(_CSV_START.startswith(torn) or torn.startswith(_CSV_START + b","))
            return
        self.columns = self._checked_header(self.header)
        self.end = len(self.header)
        reader = csv.reader(self._texts(records), strict=True)
        try:
            for cells in reader:
                self.rows += 1
                if len(cells) != len(self.columns):
                    self._refuse(f"row {self.rows} has {len(cells)} cells, not {len(self.columns)}")
                row = StoredRow(dict(zip(self.columns, cells, strict=True)), self._record)
                self._check_row(row)
                self.end += len(self._record)
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            self._refuse(f"row {self.rows + 1} is no CSV ({error})")
        if _ROW_END.search(self._torn):  # an edit, and not a kill: rows may follow
            self._refuse(f"row {self.rows + 1} has a quote that is not closed")

    def _csv_records(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Yield whole records: lines, joined while a quote is open."""
        lines: list[bytes] = []
        is_quoted = False
        for line in stream:
            is_quoted ^= bool(line.count(b'"') & 1)
            if is_quoted or not line.endswith(b"\n"):
                lines.append(line)
            elif lines:
                lines.append(line)
                yield b"".join(lines)
                lines.clear()
            else:
                yield line
        self._torn = b"".join(lines)

    def _texts(self, records: Iterator[bytes]) -> Iterator[str]:
        for self._record in records:
            yield self._record.decode()

    def _checked_header(self, header: bytes) -> tuple[str, ...]:
        try:
            columns = next(csv.reader([header.decode("utf-8-sig")], strict=True), [])
        except (csv.Error, UnicodeDecodeError):
            self._refuse("its first line is no header")
        if own_columns(columns) is None:
            missing = [name for name in COLUMNS if name not in columns]
            self._refuse(f"no column {missing[0]!r}" if missing else "its columns stand in another order")
        return tuple(columns)

    def _jsonl_rows(self, stream: IO[bytes]) -> Iterator[StoredRow]:
        for line in stream:  # at "\n" only: other line ends may stand in the values
            if not line.endswith(b"\n"):
                torn = line.removeprefix(_BOM)
                self._torn = line
                is_batch = self.rows == 0 and looks_like_batch(torn)
                self.form = Format.OPENAI_BATCH if is_batch else self.form
                is_ours = torn.startswith(_JSONL_START) or _JSONL_START.startswith(torn)
                self._check_torn(self.rows > 0 or is_ours or is_batch)
                return
            self.rows += 1
            try:
                text = (line.removeprefix(_BOM) if self.rows == 1 else line).decode().strip()
                values, end = _decode(text)
            except (ValueError, RecursionError):
                self._refuse(f"line {self.rows} is no JSON")
            if end != len(text):
                self._refuse(f"line {self.rows} is no JSON")
            if self.rows == 1 and is_batch_line(values):
                self.form = Format.OPENAI_BATCH
            custom_id = ""
            if self.form is Format.OPENAI_BATCH and is_batch_line(values):
                custom_id, values = str(values["custom_id"]), row_values_of(values)
            if not isinstance(values, dict) or not values.keys() >= _OURS:
                missing = [name for name in COLUMNS if not isinstance(values, dict) or name not in values]
                self._refuse(f"line {self.rows} has no {missing[0]!r}")
            row = StoredRow(values, line, custom_id)
            self._check_row(row)
            self.end += len(line)
            yield row

    def _check_row(self, row: StoredRow) -> None:
        key, status = row.values["key"], row.values["status"]
        if not isinstance(key, str) or len(key) != 32 or status not in ("ok", "failed"):
            self._refuse(f"row {self.rows} has no key of 32 digits, or a status that is neither ok nor failed")

    def _check_torn(self, is_ours: bool) -> None:
        if not is_ours and self._torn.strip(b"\0"):
            self._refuse("it holds no row")

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.path}: not an output of this version of idefics-cli: {why}")
