"""Makes the sample documents and their questions: generated pages with held-out values, in many file formats."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from tools.tiny_idefics2.draw import Scan, draw
from tools.tiny_idefics2.fonts import face
from tools.tiny_idefics2.layout import make_page
from tools.tiny_idefics2.page import Page, Rule, Text

LETTER, A4, LANDSCAPE, STRIP = (756, 980), (692, 980), (980, 756), (490, 980)
_POINTS = 792 / 980  # points a layout pixel: a letter page is 980 pixels long
_WORN = Scan(angle=0.5, blur=0.3, noise=6, paper=244, contrast=0.9, oversample=2.0)
_QUESTIONS_A_PAGE = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample file: its name, its pages, and how they are written."""

    name: str
    pages: Sequence[Page]
    scan: Scan = Scan(oversample=2.0)
    scale: float = 2.0


def _page(seed: int, kind: str, em: float, size: tuple[int, int] = LETTER, *, pdf: bool = False) -> Page:
    """A page with at least three questions; a PDF's font must be one that reportlab embeds."""
    while True:
        page = make_page(Random(seed), size=size, em=em, held_out=True, kind=kind, fullest=10)
        page.asked = [one for one in page.asked if not page.cut_by_split(one)]
        embeds = all(item.family.embeds_in_pdf for item in page.items if isinstance(item, Text))
        if len(page.asked) >= _QUESTIONS_A_PAGE and (embeds or not pdf):
            return page
        seed += 1000


def samples() -> list[Sample]:
    """Return every sample document."""
    return [
        Sample(
            "invoice.pdf",
            [_page(1, "invoice", 15, pdf=True), _page(2, "report", 16, pdf=True), _page(3, "letter", 15, pdf=True)],
        ),
        Sample("letter.pdf", [_page(4, "letter", 27, A4, pdf=True)]),
        Sample("archive/letter.pdf", [_page(5, "letter", 16, A4, pdf=True)]),
        Sample("scanned-form.pdf", [_page(6, "form", 16), _page(7, "form", 30)], _WORN),
        Sample("dense-invoice.pdf", [_page(8, "invoice", 13.5, pdf=True)]),
        Sample("large-print.pdf", [_page(9, "form", 36, pdf=True)]),
        Sample("landscape-report.pdf", [_page(10, "report", 15.5, LANDSCAPE, pdf=True)]),
        Sample("fax.tiff", [_page(11, "report", 28), _page(12, "invoice", 30), _page(13, "letter", 27)], _WORN, 1.5),
        Sample("rotated-photo.jpg", [_page(14, "receipt", 26, A4)], _WORN),
        Sample("deep-grey-scan.png", [_page(15, "form", 15, A4)], _WORN, 1.0),
        Sample("receipt.webp", [_page(16, "receipt", 16, STRIP)], _WORN),
        Sample("small-print.png", [_page(17, "form", 14)]),
        Sample("transparent.png", [_page(18, "invoice", 28)], scale=1.0),
        Sample("cmyk.jpg", [_page(19, "report", 27)], scale=1.5),
        Sample("price-list.gif", [_page(20, "table", 16)], scale=1.0),
        Sample("notice.bmp", [_page(21, "letter", 30, A4)], scale=0.5),
    ]


def write_samples(folder: Path) -> None:
    """Write documents/, questions.csv and questions.jsonl below `folder`."""
    rows = []
    for sample in samples():
        path = folder / "documents" / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(sample, path)
        for number, page in enumerate(sample.pages, 1):
            chosen = Random(number).sample(page.asked, _QUESTIONS_A_PAGE)
            rows += [(f"documents/{sample.name}", str(number), one.question, one.answer) for one in chosen]
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("document", "page", "question", "answers"))
        writer.writerows(rows)
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as stream:
        for number, (document, page, question, answer) in enumerate(rows, 1):
            line = {
                "id": f"q{number:02}",
                "document": document,
                "page": int(page),
                "question": question,
                "answers": [answer],
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write(sample: Sample, path: Path) -> None:
    if path.suffix == ".pdf" and sample.scan.noise == 0:
        _write_text_pdf(sample.pages, path)
        return
    images = [draw(page, sample.scan, scale=sample.scale) for page in sample.pages]
    first, rest = images[0], images[1:]
    match path.name:
        case "scanned-form.pdf":
            dates = dict.fromkeys(("creationDate", "modDate"), time.gmtime(0))  # the same file every time
            first.save(
                path, append_images=rest, save_all=True, resolution=72 * sample.scale / _POINTS, quality=80, **dates
            )
        case "fax.tiff":
            first.save(path, append_images=rest, save_all=True, compression="jpeg", quality=80)
        case "rotated-photo.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6  # orientation: the camera was held turned, the viewer turns it back
            first.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=85)
        case "deep-grey-scan.png":
            Image.fromarray(np.asarray(first).astype(np.uint16) * 257).save(path)
        case "transparent.png":
            ink = Image.new("LA", first.size, 0)
            ink.putalpha(first.point([255 - level for level in range(256)]))
            ink.save(path)
        case "cmyk.jpg":
            first.convert("RGB").convert("CMYK").save(path, quality=90)
        case "receipt.webp":
            first.save(path, quality=85)
        case _:
            first.save(path)


def _write_text_pdf(pages: Sequence[Page], path: Path) -> None:
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    for page in pages:
        canvas.setPageSize((page.width * _POINTS, page.height * _POINTS))
        canvas.scale(_POINTS, _POINTS)
        for item in page.items:
            if isinstance(item, Rule):
                x0, y0, x1, y1 = item.box
                canvas.setFillGray(item.ink / 255)
                canvas.setStrokeGray(item.ink / 255)
                canvas.rect(x0, page.height - y1, x1 - x0, y1 - y0, fill=not item.outline, stroke=item.outline)
            else:
                _write_text(canvas, page, item)
        canvas.showPage()
    canvas.save()
    path.write_bytes(stream.getvalue())


def _write_text(canvas: Canvas, page: Page, item: Text) -> None:
    file = item.family.bold if item.bold else item.family.regular
    if file.stem not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(TTFont(file.stem, str(file)))
    ascent, _ = face(file, item.size).getmetrics()
    canvas.setFillGray(item.ink / 255)
    canvas.setFont(file.stem, item.size)
    canvas.drawString(item.x, page.height - item.y - ascent, item.text)
