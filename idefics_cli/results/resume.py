"""What an output already answers: the file is the journal, and the `key` column says what each row answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.config import Format, RetryFailed
from idefics_cli.errors import FailureKind, OutputError
from idefics_cli.records import COST_COLUMNS


@dataclass(frozen=True, slots=True)
class Journal:
    """The rows of an output that stay."""

    kept: str
    """Their text, header included; a torn last row is cut off, failed rows to be asked again are left out."""
    keys: frozenset[str]
    """Of the rows in it."""
    stays: int | None = 0
    """Bytes of the output that stay as they are, from its start; None where rows among them go."""

    def seconds_a_row(self, form: Format) -> float | None:
        """Return what an answered row took on the average, by the cost columns; None where there is none."""
        if form is Format.JSONL:
            rows: Iterable[Mapping[str, Any]] = map(json.loads, self.kept.splitlines())
        else:
            rows = csv.DictReader(io.StringIO(self.kept, newline=""))
        costs = [sum(float(row[name] or 0) for name in COST_COLUMNS) for row in rows if row["status"] == "ok"]
        return sum(costs) / len(costs) / 1e3 if costs else None


def read_journal(path: Path, form: Format, columns: Sequence[str], *, retry_failed: RetryFailed | None) -> Journal:
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
        kept, keys = _from_jsonl(text, retry_failed)
    else:
        kept, keys = _from_csv(text, path, columns, retry_failed)
    return Journal(kept, frozenset(keys), len(kept.encode()) if text.startswith(kept) else None)


def _from_csv(text: str, path: Path, columns: Sequence[str], retry_failed: RetryFailed | None) -> tuple[str, set[str]]:
    whole = _cut_torn_row(text)
    if not whole:
        return "", set()
    rows = csv.reader(io.StringIO(whole, newline=""))
    header = next(rows)
    if header != list(columns):
        differing = sorted(set(header) ^ set(columns)) or ["their order"]
        raise OutputError(
            f"{path}: its columns differ from this run's ({', '.join(differing)}); use --overwrite or another output"
        )
    status, error = header.index("status"), header.index("error")
    kept, keys = io.StringIO(), set[str]()
    writer = csv.writer(kept, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        if len(row) == len(header) and not _is_to_retry(row[status], row[error], retry_failed):
            writer.writerow(row)
            keys.add(row[0])
    return kept.getvalue(), keys


def _cut_torn_row(text: str) -> str:
    """Drop what follows the last newline that stands outside quotes."""
    end, quoted = 0, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == "\n" and not quoted:
            end = index + 1
    return text[:end]


def _is_to_retry(status: str, error: str, retry_failed: RetryFailed | None) -> bool:
    if status != "failed" or retry_failed is None:
        return False
    kind = error.partition(":")[0]
    return retry_failed is RetryFailed.ALL or any(kind == other and other.is_passing for other in FailureKind)


def _from_jsonl(text: str, retry_failed: RetryFailed | None) -> tuple[str, set[str]]:
    kept, keys = [], set[str]()
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or "key" not in row:
            continue
        if _is_to_retry(str(row.get("status")), str(row.get("error")), retry_failed):
            continue
        kept.append(line + "\n")
        keys.add(str(row["key"]))
    return "".join(kept), keys
