"""Writes rows as CSV or JSONL, each whole or not at all, and synced within a second."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.records import Row
from idefics_cli.results.columns import user_columns
from idefics_cli.results.lines import RowFormatter, csv_header, csv_line, encoded
from idefics_cli.results.sync import Sink, Syncer, file_size

_KEY_DIGITS = 32
_MOST_NOTES = 50


class RowWriter:
    """Writes rows to a sink."""

    def __init__(
        self,
        sink: Sink,
        form: Format,
        columns: Sequence[str],
        *,
        header: bool = True,
        excel_safe: bool = False,
        name: str = "the output",
    ) -> None:
        """Begin to write.

        Args:
            sink: takes the bytes.
            form: of its lines.
            columns: the user's own; but for CSV they may grow.
            header: whether CSV begins with its header.
            excel_safe: whether an apostrophe goes before what a spreadsheet would run.
            name: of the sink, for errors.

        Raises:
            OutputError: the header can't be written.

        """
        self.rows = 0
        self._sink, self._form, self._name = sink, form, name
        self._formatter = RowFormatter(form, columns, excel_safe=excel_safe)
        self._has_grown = False
        self._notes = {
            name: f"column {name!r} is {column!r} in the output, since {name!r} is one of its own"
            for name, column in self._formatter.names.items()
            if name != column
        }
        self._syncer = Syncer(sink, name)
        if form is Format.CSV and header:
            self._put(encoded(csv_line(csv_header(columns, excel_safe=excel_safe))))

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
        if self._form is not Format.CSV:
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
            raise OutputError(f"can't write {self._name}: {error.strerror}; the rows before are whole") from error
        self._syncer.written()


def _cut_back(sink: Sink, written: int) -> None:
    """Drop what was written of a row."""
    if written and (end := file_size(sink)) is not None:
        with contextlib.suppress(OSError):
            os.ftruncate(sink.fileno(), end - written)
            os.lseek(sink.fileno(), end - written, os.SEEK_SET)
