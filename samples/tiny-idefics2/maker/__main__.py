"""`python -m maker train` trains the model, `python -m maker evaluate` asks it about new pages."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from maker.train import Plan, main


def _evaluate(dense: int, large: int, seed: int, quantize: str) -> None:
    from idefics_cli.config import Quantize, Split
    from maker.evaluate import answer_pages, draw_pages, report

    with tempfile.TemporaryDirectory() as folder:
        pages = draw_pages(Path(folder), dense=dense, large=large, seed=seed)
        print(report({split: answer_pages(pages, split, quantize=Quantize(quantize)) for split in Split}))


def _parse() -> argparse.Namespace:
    usual = Plan(Path(__file__).parent.parent)
    parser = argparse.ArgumentParser(prog="python -m maker", description=__doc__)
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("--out", type=Path, default=usual.out)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--pages", type=int, default=usual.pages)
    parser.add_argument("--workers", type=int, default=usual.workers)
    parser.add_argument("--rate", type=float, default=usual.rate)
    parser.add_argument("--vision", type=Path, help="a checkpoint whose vision tower is kept")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--dense", type=int, default=500, help="evaluate: pages of small print")
    parser.add_argument("--large", type=int, default=150, help="evaluate: pages of large print")
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument(
        "--quantize", choices=["none", "fp8"], default="none", help="evaluate: as `idefics-cli run` does"
    )
    return parser.parse_args()


def _plan(given: argparse.Namespace) -> Plan:
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
    arguments = _parse()
    if arguments.command == "train":
        main(_plan(arguments))
    else:
        _evaluate(arguments.dense, arguments.large, arguments.seed, arguments.quantize)
