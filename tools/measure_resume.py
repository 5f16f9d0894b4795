"""Measures how long --resume reads an output of many rows, and with how much memory.

    python tools/measure_resume.py ROWS [csv|jsonl]

Writes an output of so many rows to a temporary folder, reads it as --resume does, and takes keys of its rows.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path

from idefics_cli.config import Format, OutputSettings
from idefics_cli.records import Row
from idefics_cli.results.check import read_state
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.results.lines import cell_text, csv_header, csv_line, json_line, row_values

_SETTINGS = {"model": "m", "--split": "auto"}
_KEYS_TO_TAKE = 100_000


def _row() -> Row:
    """Return a row whose document, id and key are to be replaced."""
    return Row(
        "<document>", "1", 'What is the "total", as printed?', "12,345.67 EUR", 0.9876, "ok", "", "", "<id>", {},
        "pdfium", True, 5, 371, 8, 32, 12.34, 5.67, 89.01, 23.45, 67.89, 345.67, "2026-11-21T03:04:05Z",
        "HuggingFaceM4/idefics2-8b", settings_fingerprint(_SETTINGS), "<key>",
    )  # fmt: skip


def _key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def _write(path: Path, form: Format, rows: int) -> None:
    values = row_values(_row())
    line = json_line(values) if form is Format.JSONL else csv_line(map(cell_text, values.values()))
    line = line.replace("%", "%%").replace("<document>", "inbox/%07d/scan.pdf").replace("<id>", "%d")
    line = line.replace("<key>", "%s")
    with path.open("w", encoding="utf-8", newline="") as stream:
        if form is Format.CSV:
            stream.write(csv_line(csv_header([])))
        for number in range(rows):
            stream.write(line % (number // 10, number, _key(number)))


def _main() -> None:
    rows, form = int(sys.argv[1]), Format(sys.argv[2] if len(sys.argv) > 2 else "csv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"answers.{form}"
        _write(path, form, rows)
        started = time.process_time()
        status = read_state(OutputSettings(path, form, resume=True), [], _SETTINGS)
        seconds = time.process_time() - started
        print(f"{form}: {status.rows} rows, {path.stat().st_size / 1e9:.2f} GB, read in {seconds:.1f} s of CPU time")
        keys = [_key(number) for number in range(min(rows, _KEYS_TO_TAKE))]
        started = time.process_time()
        taken = sum(map(status.answered.take, keys))
        print(f"{taken} keys taken, {(time.process_time() - started) / taken * 1e6:.1f} microseconds each")
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory")


if __name__ == "__main__":
    _main()
