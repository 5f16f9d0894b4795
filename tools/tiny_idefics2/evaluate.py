"""Asks the tiny model about pages that training never saw: own held-out ones, the second set, and the samples."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps

from idefics_cli.config import PageSettings
from idefics_cli.documents.text_size import em_from_ink
from tools.tiny_idefics2 import second_set
from tools.tiny_idefics2.data import SHAPE_WEIGHTS, SHAPES
from tools.tiny_idefics2.draw import Scan, draw
from tools.tiny_idefics2.layout import DENSE, LARGE, make_page
from tools.tiny_idefics2.model import IMAGE_SIZE
from tools.tiny_idefics2.reading import AskedPage, TinyReader

QUESTIONS_A_PAGE = 3
USUAL = 14  # labelled fields of a usual invoice or form; training pages hold up to twice as many
SPLIT_BELOW = PageSettings().split_em
SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def own_page(seed: int, group: str, em: tuple[float, float], fullest: int = USUAL) -> AskedPage:
    """Draw a page of the training generator with held-out values; what splitting would cut through is not asked."""
    rng = Random(seed)
    size = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
    while True:
        page = make_page(rng, size=size, em=rng.uniform(*em), held_out=True, fullest=fullest)
        asked = [one for one in page.asked if not page.cut_by_split(one)]
        if asked:
            break
    rng.shuffle(asked)
    questions = tuple((one.question, one.answer, f"{page.kind}/{one.kind}") for one in asked[:QUESTIONS_A_PAGE])
    return AskedPage(draw(page, Scan.random(rng)), group, page.em * IMAGE_SIZE / max(size), questions)


def _drawn(task: tuple[str, int]) -> AskedPage:
    group, seed = task
    if group.startswith("second"):
        return second_set.asked_page(seed)
    return own_page(seed, group, DENSE if group == "dense" else LARGE)


def draw_pages(
    dense: int, large: int, second: int, seed: int, first: int = 0, drawers: int | None = None
) -> list[AskedPage]:
    """Draw both sets of pages, in as many processes as there are processors, or in `drawers`."""
    tasks = [("dense", seed + n) for n in range(dense)] + [("large", seed + 10_000 + n) for n in range(large)]
    tasks += [("second", n) for n in range(first, first + second)]
    with ProcessPoolExecutor(drawers or min(32, os.cpu_count() or 1)) as pool:
        return list(pool.map(_drawn, tasks, chunksize=4))


def sample_pages() -> list[AskedPage]:
    """The pages of samples/ with their questions; PDF pages are rendered as the package does."""
    import pypdfium2

    rows: dict[tuple[str, int], list[tuple[str, str, str]]] = {}
    with (SAMPLES / "questions.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            asked = rows.setdefault((row["document"], int(row["page"])), [])
            asked.append((row["question"], row["answers"], row["document"]))
    pages = []
    for (name, number), questions in rows.items():
        path = SAMPLES / name
        if path.suffix == ".pdf":
            page = pypdfium2.PdfDocument(path)[number - 1]
            image = page.render(scale=2 * IMAGE_SIZE / max(page.get_size())).to_pil()
        else:
            image = _frame(path, number)
        pages.append(AskedPage(image, "samples", 0.0, tuple(questions)))
    return pages


def _frame(path: Path, number: int) -> Image.Image:
    image = Image.open(path)
    image.seek(number - 1)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


def score(pages: Sequence[AskedPage], answers: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
    """Whether each answer is exactly right, by the group of its page and by its kind of look-up."""
    found: dict[str, list[bool]] = {}
    for page, given in zip(pages, answers, strict=True):
        for (_, wanted, kind), answer in zip(page.questions, given, strict=True):
            right = answer == wanted
            found.setdefault(page.group, []).append(right)
            if page.group != "samples":
                found.setdefault(f"{page.group.split('-')[0]}: {kind}", []).append(right)
    return found


def is_small(page: AskedPage) -> bool:
    """Whether `auto` splits a page, by its ink."""
    em = em_from_ink(page.image, IMAGE_SIZE)
    return em is not None and em < SPLIT_BELOW


def figures(pages: Sequence[AskedPage], reader: TinyReader, ways: Sequence[str], wrong: int = 0) -> dict[str, object]:
    """Shares answered exactly, by way of splitting and group, and what `auto` splits."""
    small = [is_small(page) for page in pages]
    read = {"always": reader.answer(pages, [True] * len(pages))}
    if "never" in ways:
        read["never"] = reader.answer(pages, [False] * len(pages))
        read["auto"] = [read["always" if is_ else "never"][n] for n, is_ in enumerate(small)]
    result: dict[str, object] = {}
    for way, answers in read.items():
        shares = {name: (round(sum(s) / len(s), 4), len(s)) for name, s in sorted(score(pages, answers).items())}
        result[way] = {name: value for name, value in shares.items() if way == "always" or ":" not in name}
    for group in sorted({page.group for page in pages}):
        chosen = [is_ for page, is_ in zip(pages, small, strict=True) if page.group == group]
        result[f"{group} pages split by auto"] = (round(sum(chosen) / len(chosen), 4), len(chosen))
    shown: dict[str, int] = {}
    for page, given in zip(pages, read["always"], strict=True):
        for (question, wanted, kind), answer in zip(page.questions, given, strict=True):
            if answer != wanted and shown.setdefault(page.group, 0) < wrong:
                shown[page.group] += 1
                print(json.dumps([page.group, kind, question, wanted, answer], ensure_ascii=False))
    return result


def evaluate(
    model: Path,
    dtypes: Sequence[str],
    dense: int,
    large: int,
    second: int,
    seed: int,
    wrong: int = 0,
    report: Path | None = None,
    ways: Sequence[str] = ("always", "never"),
    first: int = 0,
    drawers: int | None = None,
    brief: bool = False,
) -> None:
    """Print, and write, the figures of a checkpoint in each dtype; `brief` is one line of groups."""
    started = time.monotonic()
    pages = draw_pages(dense, large, second, seed, first, drawers)
    try:
        pages += sample_pages()
    except ImportError:
        print("samples/ left out: its PDFs need pypdfium2")
    if not brief:
        print(f"{len(pages)} pages drawn in {time.monotonic() - started:.0f} s", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, dict[str, object]] = {}
    for dtype in dtypes:
        begun = time.monotonic()
        result[dtype] = figures(pages, TinyReader(model, getattr(torch, dtype), device), ways, wrong)
        result[dtype]["seconds"] = round(time.monotonic() - begun, 1)
        shown = result[dtype]
        if brief:
            shown = {way: {k: v for k, v in shown[way].items() if ":" not in k} for way in ways if way in shown}  # type: ignore[attr-defined]
        print(dtype, json.dumps(shown, indent=None if brief else 1), flush=True)
        if report is not None:
            report.write_text(json.dumps(result, indent=1))
