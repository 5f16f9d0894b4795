"""Tells JSONL from CSV by the first line that is not blank, and refuses what is neither in words that help."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Protocol

from idefics_cli.errors import InputError
from idefics_cli.questions.columns import ColumnNames
from idefics_cli.questions.jsonl import JsonLines
from idefics_cli.questions.lines import BOM, EXPORT, Lines, Record
from idefics_cli.questions.table import CsvTable

_FOREIGN = (
    (b"%PDF", "a PDF, not questions; documents stand before --questions"),
    (b"\x1f\x8b", "compressed with gzip: zcat it into a pipe and read that with --questions -"),
    (b"\xd0\xcf\x11\xe0", f"an old Excel workbook (XLS): {EXPORT}"),
    (b"PAR1", "a Parquet file: convert it to JSONL"),
    (b"\xff\xfe", f"UTF-16 text: {EXPORT}"),
    (b"\xfe\xff", f"UTF-16 text: {EXPORT}"),
)
_OF_REQUESTS = frozenset(("custom_id", "method", "url", "body"))
_OF_QUESTIONS = frozenset(("question", "messages", "documents"))


class Records(Protocol):
    """The records of a stream, in either format."""

    @property
    def is_batch(self) -> bool:
        """Whether they are requests in the form of OpenAI batch files."""

    def __iter__(self) -> Iterator[Record]:
        """Yield the records that are not blank, those that can't be read too."""

    def parse(self, text: str) -> tuple[dict[str, object], str]:
        """Read the first record of `text` again: its values, and the problem with it."""


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
    text = first.decode(errors="replace").lstrip(BOM).strip()
    if is_jsonl or not text or _looks_like_json(text):
        return JsonLines(lines, is_batch=not columns.given and _begins_batch(text))
    return CsvTable(lines, name, columns)


def _refuse_foreign(first: bytes, name: str) -> None:
    for magic, words in _FOREIGN:
        if first.startswith(magic):
            raise InputError(f"{name}: {words}")
    if first.startswith(b"PK\x03\x04"):
        kind = (
            "an OpenDocument spreadsheet (ODS)" if b"opendocument.spreadsheet" in first else "an Excel workbook (XLSX)"
        )
        raise InputError(f"{name}: {kind} or another ZIP archive: {EXPORT}")
    if len(first) > 1 and first[:200].count(b"\0") > len(first[:200]) // 3:
        raise InputError(f"{name}: UTF-16 text or no text: {EXPORT}")


def is_request(values: Mapping[str, object]) -> bool:
    """Whether the values of a line are those of a batch file."""
    keys = values.keys()
    return len(keys & _OF_REQUESTS) >= 2 and not keys & _OF_QUESTIONS


def _begins_batch(text: str) -> bool:
    """Whether a first line is one of a batch file; one that is broken is known by its keys."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return all(re.search(rf'"{name}"\s*:', text) for name in ("custom_id", "body"))
    return isinstance(values, dict) and is_request(values)


def _looks_like_json(text: str) -> bool:
    if text.startswith(("{", "[")) or (text.endswith(("}", "]")) and '":' in text):
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return text != '"question"'  # a table of one column, in quotes
