"""Compares two outputs in CSV row by row, as far as the shorter one goes; exit code 1 where they differ.

python tools/compare_outputs.py ONE.csv OTHER.csv

What says when a row was answered, how long it took, and how large its batch was, is left out.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path


def main(one: Path, other: Path) -> int:
    with one.open(encoding="utf-8", newline="") as first, other.open(encoding="utf-8", newline="") as second:
        pairs = list(zip(csv.DictReader(first), csv.DictReader(second), strict=False))
    columns = [name for name in pairs[0][0] if not name.endswith("_ms") and name not in ("answered_at", "batch_size")]
    differ = Counter(name for row, same in pairs for name in columns if row[name] != same[name])
    statuses = dict(Counter(row["status"] for row, _ in pairs))
    print(f"{one.name} and {other.name}: {len(pairs)} rows, {statuses}; columns that differ: {dict(differ) or 'none'}")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
