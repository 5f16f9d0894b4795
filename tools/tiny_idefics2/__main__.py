"""`train` trains the tiny model, `evaluate` asks it about new pages, `samples` writes sample documents."""

from __future__ import annotations

import argparse
from pathlib import Path

MODEL = Path(__file__).resolve().parents[2] / "samples" / "tiny-idefics2"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_idefics2", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="from nothing, or from a checkpoint that reads; resumable")
    train.add_argument("--out", type=Path, required=True, help="the checkpoint's folder; holds state.pt too")
    train.add_argument("--start", type=Path, help="a checkpoint to go on from; without it, from nothing")
    train.add_argument("--minutes", type=float, default=25.0, help="of wall clock, start-up included")
    train.add_argument("--pages", type=int, default=32, help="split pages a step and GPU")
    train.add_argument("--workers", type=int, help="page-drawing processes a GPU")
    train.add_argument("--rate", type=float, default=1.2e-3)
    train.add_argument("--processes", type=int, default=1, help="data-parallel processes where there is no GPU")
    train.add_argument("--settle", type=int, default=150, help="first steps of new heads beside a started checkpoint")
    train.add_argument("--warm-up", type=int, default=200, help="steps until the full rate")
    train.add_argument("--cool", type=float, default=0.4, help="last share of the time, in which the rate falls")
    train.add_argument("--watch", type=int, default=0, help="pages of each set that checkpoints are asked about")
    train.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    train.add_argument("--no-compile", dest="compile", action="store_false")
    average = commands.add_parser("average", help="a checkpoint between two others, tensor by tensor")
    average.add_argument("first", type=Path)
    average.add_argument("second", type=Path)
    average.add_argument("--share", type=float, default=0.2, help="of the way to the second")
    average.add_argument("--out", type=Path, required=True, help="a new folder")
    evaluate = commands.add_parser("evaluate", help="own held-out pages, the second set, and the samples")
    evaluate.add_argument("--model", type=Path, default=MODEL)
    evaluate.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    evaluate.add_argument("--dense", type=int, default=300, help="own pages of small print")
    evaluate.add_argument("--large", type=int, default=80, help="own pages of large print")
    evaluate.add_argument("--second", type=int, default=80, help="pages of the second set")
    evaluate.add_argument("--seed", type=int, default=20_000)
    evaluate.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each set")
    evaluate.add_argument("--ways", nargs="+", default=["always", "never"], help="of splitting; never brings auto too")
    evaluate.add_argument("--first", type=int, default=0, help="the first page of the second set")
    evaluate.add_argument("--drawers", type=int, help="processes that draw the pages")
    evaluate.add_argument("--brief", action="store_true", help="one line, without kinds of look-up")
    evaluate.add_argument("--report", type=Path, help="write the figures to this file too")
    threshold = commands.add_parser("threshold", help="the evidence of samples/split-threshold.md")
    threshold.add_argument("--pages", type=int, default=240)
    threshold.add_argument("--seed", type=int, default=4242)
    threshold.add_argument("--model", type=Path, default=MODEL)
    thresholds = commands.add_parser("thresholds", help="what auto keeps and leaves whole at other thresholds")
    thresholds.add_argument("--own", type=int, default=120, help="own pages of small print, and as many of large print")
    thresholds.add_argument("--second", type=int, default=240, help="pages of the second set")
    thresholds.add_argument("--seed", type=int, default=60_000)
    thresholds.add_argument("--first", type=int, default=0, help="the first page of the second set")
    thresholds.add_argument("--model", type=Path, default=MODEL)
    several = commands.add_parser("several", help="documents of several pages, through the package")
    several.add_argument("--documents", type=int, default=18)
    several.add_argument("--seed", type=int, default=90_000)
    several.add_argument("--model", default="tiny")
    formats = commands.add_parser("formats", help="right answers by dtype and quantization, through the package")
    formats.add_argument("--own", type=int, default=320, help="own pages of small print")
    formats.add_argument("--second", type=int, default=180, help="pages of the second set")
    formats.add_argument("--seed", type=int, default=120_000)
    formats.add_argument("--model", default="tiny")
    formats.add_argument("--drawers", type=int, help="processes that draw the pages")
    formats.add_argument(
        "--formats",
        nargs="+",
        default=["float32", "bfloat16", "float16", "fp8", "int8", "int4", "bnb-8bit", "bnb-4bit"],
        help="dtypes, or quantizations in bfloat16",
    )
    commands.add_parser("samples", help="write samples/documents and their questions anew")
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    given = vars(_parse())
    match given.pop("command"):
        case "train":
            from tools.tiny_idefics2.state import Plan
            from tools.tiny_idefics2.train import main

            main(Plan(**given))
        case "average":
            from tools.tiny_idefics2.average import main

            main(**given)
        case "evaluate":
            from tools.tiny_idefics2.evaluate import evaluate

            evaluate(**given)
        case "threshold":
            from tools.tiny_idefics2.threshold import evidence

            print(evidence(**given))
        case "thresholds":
            from tools.tiny_idefics2.threshold import compare_thresholds

            print(compare_thresholds(**given))
        case "several":
            from tools.tiny_idefics2.several import several_pages

            for way, (asked, exact, page) in several_pages(**given).items():
                print(f"{way}: {exact} of {asked} exact, {page} from the right page")
        case "formats":
            from tools.tiny_idefics2.formats import compare_formats

            for one in compare_formats(**given):
                shares = f"{one.exact / one.asked:.1%} exact, {one.same / one.asked:.1%} as the first"
                print(f"{one.dtype}, {one.quantize}: {shares} of {one.asked}", flush=True)
        case _:
            from tools.tiny_idefics2.samples import write_samples

            write_samples(MODEL.parent)


if __name__ == "__main__":
    main()
