"""What an output already answers: the file is the journal, and the `key` column says what each row answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import Format
from idefics_cli.errors import OutputError


@dataclass(frozen=True, slots=True)
class Journal:
    """The rows of an output that stay."""

    kept: str
    """Their text, header included; a torn last row is cut off, failed rows to be asked again are left out."""
    keys: frozenset[str]
    """Of the rows in it."""


def read_journal(path: Path, form: Format, columns: Sequence[str], *, retry_failed: bool) -> Journal:
    """Read an output to be resumed.

    Raises:
        OutputError: it can't be read, or its columns are not those of this run.

    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: can't be read to resume it: {error}") from error
    if form is Format.JSONL:
        return _from_jsonl(text, retry_failed)
    return _from_csv(text, path, columns, retry_failed)


def _from_csv(text: str, path: Path, columns: Sequence[str], retry_failed: bool) -> Journal:
    whole = _cut_torn_row(text)
    if not whole:
        return Journal("", frozenset())
    rows = csv.reader(io.StringIO(whole, newline=""))
    header = next(rows)
    if header != list(columns):
        differing = sorted(set(header) ^ set(columns)) or ["their order"]
        raise OutputError(
            f"{path}: its columns differ from this run's ({', '.join(differing)}); use --overwrite or another output"
        )
    status = header.index("status")
    kept, keys = io.StringIO(), set()
    writer = csv.writer(kept, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        if len(row) == len(header) and not (retry_failed and row[status] == "failed"):
            writer.writerow(row)
            keys.add(row[0])
    return Journal(kept.getvalue(), frozenset(keys))


def _cut_torn_row(text: str) -> str:
    """Drop what follows the last newline that stands outside quotes."""
    end, quoted = 0, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == "\n" and not quoted:
            end = index + 1
    return text[:end]


def _from_jsonl(text: str, retry_failed: bool) -> Journal:
    kept, keys = [], set()
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or "key" not in row or (retry_failed and row.get("status") == "failed"):
            continue
        kept.append(line + "\n")
        keys.add(str(row["key"]))
    return Journal("".join(kept), frozenset(keys))
