"""Writes rows as CSV or JSONL, each whole and synced at least every second."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.records import COLUMNS, Row

_SYNC_EVERY = 1.0  # seconds
_USER_SUFFIX = "_input"
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")


def user_columns(names: Sequence[str]) -> dict[str, str]:
    """Map the user's columns to output columns: one that bears the name of ours gets a suffix.

    `answers` stays `answers`: it is theirs, and `eval` looks for it by that name.
    """
    taken = set(COLUMNS) | {name for name in names if name not in COLUMNS}
    mapped = {}
    for name in names:
        column = name
        while column in COLUMNS or (column != name and column in taken):
            column += _USER_SUFFIX
        taken.add(column)
        mapped[name] = column
    return mapped


def output_columns(names: Sequence[str]) -> list[str]:
    """Return an output's columns, the user's own last."""
    return [*COLUMNS, *user_columns(names).values()]


class RowWriter:
    """Writes rows to a stream."""

    def __init__(
        self, stream: IO[str], form: Format, extra: Sequence[str], *, header: bool = True, excel_safe: bool = False
    ) -> None:
        self._stream, self._form, self._excel_safe = stream, form, excel_safe
        self._names = user_columns(extra)
        self._synced = time.monotonic()
        self._later: threading.Timer | None = None
        if form is Format.CSV and header:
            self._put(csv_line(output_columns(extra)))

    @property
    def renamed(self) -> dict[str, str]:
        """The user's columns that had to be renamed, and their new names."""
        return {name: column for name, column in self._names.items() if name != column}

    def write(self, row: Row) -> None:
        """Write one row.

        Raises:
            OutputError: the disk is full, or the output can't be written.
            BrokenPipeError: nobody reads stdout any more.

        """
        values = cells(row)
        if self._form is Format.JSONL:
            for name in row.extra:
                if name not in self._names:
                    self._names |= user_columns([name])
            values |= {self._names[name]: value for name, value in row.extra.items()}
            self._put(json.dumps(values, ensure_ascii=False) + "\n")
        else:
            extra = [_text(row.extra.get(name)) for name in self._names]
            texts = [*(_text(value) for value in values.values()), *extra]
            self._put(csv_line([_plain_cell(text) for text in texts] if self._excel_safe else texts))

    def _put(self, line: str) -> None:
        """Write a line whole or not at all."""
        whole = self._size()
        try:
            self._stream.write(line)
            self._stream.flush()
            if time.monotonic() - self._synced > _SYNC_EVERY:
                self.sync()
            elif self._later is None:  # the next row may be long in coming
                self._later = threading.Timer(_SYNC_EVERY, self.sync)
                self._later.daemon = True
                self._later.start()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._cut_back(whole)
            raise OutputError(
                f"can't write the output: {error.strerror}; its rows are whole, --resume goes on with them"
            ) from error

    def _size(self) -> int | None:
        """Return the bytes in a regular file; None of a pipe or a terminal."""
        try:
            status = os.fstat(self._stream.fileno())
        except (OSError, io.UnsupportedOperation):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _cut_back(self, size: int | None) -> None:
        """Drop a row that was written in part; what the stream still holds of it must not follow later."""
        with contextlib.suppress(OSError, ValueError):
            if size is not None:
                os.truncate(self._stream.fileno(), size)
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)

    def sync(self) -> None:
        """Bring what is written to the disk; streams that are no files have none."""
        later, self._later = self._later, None
        if later is not None:
            later.cancel()
        self._synced = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # no file, or closed by now
            os.fsync(self._stream.fileno())


def cells(row: Row) -> dict[str, Any]:
    """Return a row's own columns: numbers rounded to what they mean."""
    values: dict[str, Any] = {}
    for name in COLUMNS:
        value = getattr(row, name)
        if isinstance(value, float):
            value = round(value, 4 if name == "confidence" else 2)
        values[name] = value
    return values


def csv_line(values: Sequence[str]) -> str:
    """Format one CSV record."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _plain_cell(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text) else text


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict | Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a file beside `path` that takes its place when the block ends well.

    Raises:
        OutputError: the folder can't be written to.

    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        stream = beside.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
