"""Writes letter pages as PDFs, no two alike, and a questions file that asks each of them once.

python tools/write_letters.py FOLDER COUNT
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from idefics_cli.diagnostics.synthetic_pages import write_letters


def main(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["document", "question"])
        for number, path in enumerate(write_letters(folder, count)):
            writer.writerow(
                [path.name, f"What is word {number % 12 + 1} of line {number % 60 + 1}, and where else is it?"]
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
