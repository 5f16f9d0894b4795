"""`python -m maker train`: the whole training, in one command."""

from __future__ import annotations

import argparse
from pathlib import Path

from maker.train import Plan, main


def _parse() -> Plan:
    usual = Plan(Path(__file__).parent.parent)
    parser = argparse.ArgumentParser(prog="python -m maker", description=__doc__)
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--out", type=Path, default=usual.out)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--pages", type=int, default=usual.pages)
    parser.add_argument("--workers", type=int, default=usual.workers)
    parser.add_argument("--rate", type=float, default=usual.rate)
    parser.add_argument("--vision", type=Path, help="a checkpoint whose vision tower is kept")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    given = parser.parse_args()
    return Plan(
        given.out,
        minutes=given.minutes,
        pages=given.pages,
        rate=given.rate,
        workers=given.workers,
        compile=given.compile,
        vision=given.vision,
    )


if __name__ == "__main__":
    main(_parse())
