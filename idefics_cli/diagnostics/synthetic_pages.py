"""Writes letter pages as PDFs, and prepares first pages: what `bench` measures and `doctor` asks with."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from idefics_cli.documents.page import DocumentInfo, ImageProcessor
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.records import Document, PreparedPage

_LETTER = (612, 792)  # points
_LINES, _POINTS = 64, 9
_WORDS = ("amount", "account", "balance", "customer", "delivery", "invoice", "number", "order", "payment", "total")


def write_letters(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """Write PDFs of one letter page with 64 lines of text each, no two alike: those numbered from `first` on."""
    paths = []
    for number in range(first, first + count):
        words = random.Random(number)  # noqa: S311
        lines = [" ".join(words.choice(_WORDS) for _ in range(12)) for _ in range(_LINES)]
        path = folder / f"letter-{number:04}.pdf"
        path.write_bytes(letter(lines))
        paths.append(path)
    return paths


def first_pages(documents: Sequence[Document], processor: ImageProcessor, pool: PagePool) -> list[PreparedPage]:
    """Rasterize and cut the first page of each document, all at once.

    Raises:
        RowFailedError: one of them can't be.

    """
    infos = [pool.open(document) for document in documents]
    futures = [
        pool.prepare(document, result_of(info, DocumentInfo), 1, processor)
        for document, info in zip(documents, infos, strict=True)
    ]
    pages = []
    while futures:
        page = result_of(futures.pop(0), PreparedPage)
        # Copies: shared memory goes with the pool, and is for the pages that are measured on their way from disk.
        pages.append(dataclasses.replace(page, crops=tuple(crop.copy() for crop in page.crops)))
    return pages


def letter(lines: Sequence[str]) -> bytes:
    """Set lines of text on one letter page, as a PDF (ISO 32000-1, sections 7.5 and 9.4)."""
    shown = "".join(f"({line}) Tj T*\n" for line in lines)
    content = f"BT /F1 {_POINTS} Tf {_POINTS + 2} TL 40 {_LETTER[1] - 50} Td\n{shown}ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>" % _LETTER,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(file)
