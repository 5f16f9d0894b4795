"""From the bytes of a questions file or pipe to records: JSONL or CSV, as its first line that is not blank says."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import deque
from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol

from idefics_cli.errors import InputError
from idefics_cli.questions.columns import ColumnNames

_LONGEST_LINE = 256 * 1024 * 1024
_BOM = "\ufeff"
_DELIMITERS = ",;\t|"
_DEEPEST = 100
_EXPORT = "save it as CSV in UTF-8 (in Excel: Save As, 'CSV UTF-8'; in LibreOffice: Text CSV, character set UTF-8)"
_FOREIGN = (
    (b"%PDF", "a PDF, not questions; documents stand before --questions"),
    (b"\x1f\x8b", "compressed with gzip: zcat it into a pipe and read that with --questions -"),
    (b"\xd0\xcf\x11\xe0", f"an old Excel workbook (XLS): {_EXPORT}"),
    (b"PAR1", "a Parquet file: convert it to JSONL"),
    (b"\xff\xfe", f"UTF-16 text: {_EXPORT}"),
    (b"\xfe\xff", f"UTF-16 text: {_EXPORT}"),
)


class Record(NamedTuple):
    """One line of JSONL, or one record of CSV."""

    line: int
    """Where it begins, from 1."""
    start: int
    """Its first byte."""
    values: dict[str, object]
    problem: str = ""
    """Why it can't be read; `values` then holds what could."""


class Records(Protocol):
    """The records of a stream, in either format."""

    def __iter__(self) -> Iterator[Record]:
        """Yield the records that are not blank, those that can't be read too."""

    def parse(self, text: str) -> tuple[dict[str, object], str]:
        """Read the first record of `text` again: its values, and the problem with it."""


class Lines:
    """The lines of a stream, decoded, with where each stands. CR, LF and CRLF end a line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.number = 0
        """Lines given so far."""
        self.end = 0
        """Bytes given so far."""
        self.problem = ""
        """What was wrong with a line since the reader last cleared this."""
        self._stream = stream
        self._parts: deque[tuple[bytes, int]] = deque()  # with the length in the stream

    def peek(self) -> bytes:
        """Return the next line that is not blank without giving it; blank ones before it are passed over."""
        while self._parts or self._read():
            if self._parts[0][0].strip():
                return self._parts[0][0]
            next(self)
        return b""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self._parts and not self._read():
            raise StopIteration
        raw, length = self._parts.popleft()
        self.number += 1
        self.end += length
        if length > len(raw):
            self.problem = f"longer than {_LONGEST_LINE // 1024 // 1024} MB"
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            self.problem = (
                f"not UTF-8 (byte 0x{raw[error.start]:02x} after {error.start} others), perhaps Windows-1252: {_EXPORT}"
            )
            text = raw.decode(errors="replace")
        return text.removeprefix(_BOM) if self.number == 1 else text

    def _read(self) -> bool:
        chunk = self._stream.readline(_LONGEST_LINE)
        length = len(chunk)
        if length == _LONGEST_LINE and not chunk.endswith(b"\n"):
            while rest := self._stream.readline(_LONGEST_LINE):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            self._parts.append((chunk[:100], length))
        elif b"\r" in chunk:
            self._parts.extend((part, len(part)) for part in chunk.splitlines(keepends=True))
        elif chunk:
            self._parts.append((chunk, length))
        return length > 0


def open_records(stream: IO[bytes], name: str, columns: ColumnNames, *, is_jsonl: bool = False) -> Records:
    """Return the records of a stream.

    Args:
        stream: of bytes.
        name: of the file, for messages.
        columns: of questions.
        is_jsonl: whatever its first line looks like.

    Raises:
        InputError: another kind of file, or CSV without a column `question`.

    """
    lines = Lines(stream)
    first = lines.peek()
    _refuse_foreign(first, name)
    text = first.decode(errors="replace").lstrip(_BOM).strip()
    if is_jsonl or not text or _looks_like_json(text):
        return JsonLines(lines)
    return CsvTable(lines, name, columns)


def _refuse_foreign(first: bytes, name: str) -> None:
    for magic, words in _FOREIGN:
        if first.startswith(magic):
            raise InputError(f"{name}: {words}")
    if first.startswith(b"PK\x03\x04"):
        kind = (
            "an OpenDocument spreadsheet (ODS)" if b"opendocument.spreadsheet" in first else "an Excel workbook (XLSX)"
        )
        raise InputError(f"{name}: {kind} or another ZIP archive: {_EXPORT}")
    if len(first) > 1 and first[:200].count(b"\0") > len(first[:200]) // 3:
        raise InputError(f"{name}: UTF-16 text or no text: {_EXPORT}")


def _looks_like_json(text: str) -> bool:
    if text.startswith(("{", "[")) or text.endswith(("}", "]")):
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return text != '"question"'  # a table of one column, in quotes


class JsonLines:
    """JSON objects, one a line."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[Record]:
        lines = self._lines
        start = lines.end
        for text in lines:
            if lines.problem:
                yield Record(lines.number, start, {}, lines.problem)
                lines.problem = ""
            elif not text.isspace():
                yield Record(lines.number, start, *self.parse(text))
            start = lines.end

    def parse(self, text: str) -> tuple[dict[str, object], str]:
        """Read a line."""
        try:
            return _object(text.removeprefix(_BOM).rstrip())
        except json.JSONDecodeError as error:
            return {}, f"not a line of JSON (column {error.colno}: {error.msg})"
        except RecursionError:
            return {}, f"nested deeper than {_DEEPEST} levels"
        except Exception as error:
            return {}, f"not a line of JSON ({error})"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's limit on digits
        raise ValueError(f"a number of {len(text):,} digits") from None


def _fraction(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is larger than any number that can be kept")
    return value


def _no_constant(text: str) -> object:
    raise ValueError(f"JSON has no {text}; null stands for nothing")


_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_float=_fraction, parse_constant=_no_constant)


def _object(text: str) -> tuple[dict[str, object], str]:
    values = _DECODER.decode(text)
    if isinstance(values, list):
        return {}, "a JSON array; one object a line is wanted (jq -c '.[]' turns an array into that)"
    if not isinstance(values, dict):
        return {}, f'a JSON object is wanted, as in {{"question": "..."}}, not {text[:40]}'
    if text.count("[") + text.count("{") > _DEEPEST and _depth(values) > _DEEPEST:
        return {}, f"nested deeper than {_DEEPEST} levels"
    if "\\ud" in text or "\\uD" in text:
        encoded = json.dumps(values, ensure_ascii=False).encode(errors="replace")
        if json.loads(encoded) != values:
            return json.loads(encoded), "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return values, ""


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


class CsvTable:
    """Records of CSV: any of , ; tab | between the cells, the names of the columns first."""

    def __init__(self, lines: Lines, name: str, columns: ColumnNames) -> None:
        """Read the header.

        Raises:
            InputError: it has no column `question`, or one twice.

        """
        csv.field_size_limit(_LONGEST_LINE)
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
    if "question" not in map(columns.ours, named):
        near = [name for name, ours in columns.near_misses(named).items() if ours == "question"]
        hint = f"; did you mean --column question={near[0]}?" if near else "; --column question=NAME takes another"
        raise InputError(f"{location}: not JSON, and as CSV no column 'question' (found: {found[:200]}){hint}")
    ours = [columns.ours(name) or name for name in named]
    for name in ours:
        if ours.count(name) > 1:
            raise InputError(f"{location}: two columns are {name!r}")


def _words(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "a quotation mark that opens here is never closed"
    if "expected after" in text:
        return "text after a closing quotation mark; double the quotation marks that belong to a text"
    return f"not a record of CSV ({text})"
