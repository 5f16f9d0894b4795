"""Rows as lines of an output, CSV or JSONL."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence

from idefics_cli.config import Format
from idefics_cli.records import COLUMNS, Row
from idefics_cli.results.columns import BEFORE, output_columns, user_columns
from idefics_cli.results.openai_batch import batch_values

_LAST_BEFORE = BEFORE[-1]
_columns_of = operator.attrgetter(*COLUMNS)  # workers and drivers format tens of thousands of rows a second
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
            return encoded(json_line(values))
        if self._form is Format.OPENAI_BATCH:
            if row.response is None:
                raise ValueError(f"the row with key {row.key} has no response in the OpenAI form")
            return encoded(json_line(batch_values(values, row.response, row.custom_id)))
        texts = [cell_text(value) for value in values.values()]
        return encoded(csv_line([_inert(text) for text in texts] if self._excel_safe else texts))

    def formatted(self, row: Row) -> Row:
        """Return a row that has its line, unless it has columns without a name here."""
        return dataclasses.replace(row, line=self.line(row)) if row.extra.keys() <= self.names.keys() else row


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


def encoded(line: str) -> bytes:
    """Return a line as the output has it."""
    # A lone surrogate is no UTF-8: its escape is the same string in JSON, and readable in CSV.
    return line.encode("utf-8", "backslashreplace")
