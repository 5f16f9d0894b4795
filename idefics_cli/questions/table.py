"""Reads CSV. Whatever a record holds is given, with its values or with a problem."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from idefics_cli.errors import InputError
from idefics_cli.questions.columns import LIST_COLUMNS, ColumnNames
from idefics_cli.questions.lines import LONGEST_LINE, Lines, Record

_DELIMITERS = ",;\t|"
_LISTS = {
    "documents": "CSV has no lists: several documents for one question are JSONL, "
    '{"question": "...", "documents": ["a.pdf", "b.pdf"]}; '
    "where each line has one document, say --column document=documents",
    "messages": 'CSV has no lists: a conversation is JSONL, {"messages": [{"role": "user", "content": "..."}]}; '
    "give a column of your own another name",
}


class CsvTable:
    """Records of CSV: any of , ; tab | between the cells, the names of the columns first."""

    is_batch = False
    """See `Records`."""

    def __init__(self, lines: Lines, name: str, columns: ColumnNames) -> None:
        """Read the header.

        Raises:
            InputError: it has no column `question`, or one twice.

        """
        csv.field_size_limit(LONGEST_LINE)
        bare = re.sub(r'"[^"]*"', "", lines.peek().decode(errors="replace"))
        self._delimiter = max(_DELIMITERS, key=bare.count)
        self._lines = lines
        self._reader = csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True, strict=True)
        above = lines.number + 1
        try:
            self.header = [cell.strip() for cell in next(self._reader)]
        except csv.Error as error:
            raise InputError(f"{name}:{above}: {_words(error)}") from error
        if lines.problem:
            raise InputError(f"{name}:{above}: {lines.problem}")
        _check_header(self.header, f"{name}:{above}", columns)
        self._names = [cell or f"column {number}" for number, cell in enumerate(self.header, 1)]
        self._blank = [number for number, cell in enumerate(self.header) if not cell]

    def __iter__(self) -> Iterator[Record]:
        lines = self._lines
        while True:
            line, start = lines.number + 1, lines.end
            try:
                cells = next(self._reader)
                values, problem = self._values(cells)
            except StopIteration:
                return
            except csv.Error as error:
                cells, values, problem = [], {}, _words(error)
            if problem or lines.problem or any(map(str.strip, cells)):
                yield Record(line, start, values, lines.problem or problem)
            lines.problem = ""

    def parse(self, text: str) -> tuple[dict[str, object], str]:
        """Read a record."""
        lines = io.StringIO(text, newline="")
        return self._values(next(csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True, strict=True)))

    def _values(self, cells: list[str]) -> tuple[dict[str, object], str]:
        wanted = len(self._names)
        problem = ""
        if len(cells) > wanted and any(cell.strip() for cell in cells[wanted:]):
            problem = (
                f"{len(cells)} cells where the header has {wanted}; put quotes around cells that hold the delimiter"
            )
        if len(cells) < wanted:
            cells += [""] * (wanted - len(cells))
        values: dict[str, object] = dict(zip(self._names, cells, strict=False))
        for number in self._blank:
            if not cells[number].strip():
                del values[self._names[number]]
        return values, problem


def _check_header(header: list[str], location: str, columns: ColumnNames) -> None:
    found = ", ".join(name for name in header if name)
    named = [name for name in header if name]
    if missing := columns.missing(named):
        raise InputError(f"{location}: {missing} (found: {found})")
    for name in named:
        if (ours := columns.ours(name)) in LIST_COLUMNS:
            raise InputError(f"{location}: column {name!r}: {_LISTS[str(ours)]}")
    if "question" not in map(columns.ours, named):
        raise InputError(
            f"{location}: not JSON, and as CSV no column 'question' (found: {found[:200]}); {columns.hint(named)}"
        )
    seen = set()
    for name in named:
        column = (columns.ours(name), columns.ours(name) or name)
        if column in seen:
            raise InputError(f"{location}: two columns are {column[1]!r}")
        seen.add(column)


def _words(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "a quotation mark that opens here is never closed"
    if "expected after" in text:
        return "text after a closing quotation mark; double the quotation marks that belong to a text"
    return f"not a record of CSV ({text})"
