"""Opens and renders PDF pages: PDFium first, Poppler where asked for or where PDFium fails.

PDFium is not thread-safe and can hang or crash in C: only the page processes of `rasterize` call this module.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pdf2image
import pdf2image.exceptions
import pypdfium2
import pypdfium2.raw as pdfium_c
from PIL import Image

from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document

_SAMPLED_CHARACTERS = 400
_POPPLER_ERRORS = (
    pdf2image.exceptions.PDFInfoNotInstalledError,
    pdf2image.exceptions.PDFPageCountError,
    pdf2image.exceptions.PDFSyntaxError,
    pdf2image.exceptions.PDFPopplerTimeoutError,
    OSError,
    ValueError,
)


def is_pdf(head: bytes) -> bool:
    """Whether the first bytes of a file are a PDF's; readers accept some junk before the mark."""
    return b"%PDF-" in head[:1024]


def has_poppler() -> bool:
    """Whether Poppler's programs are on the PATH."""
    return shutil.which("pdftoppm") is not None and shutil.which("pdfinfo") is not None


@contextmanager
def pdfium(document: Document, password: str | None) -> Iterator[pypdfium2.PdfDocument]:
    """Open a document with PDFium.

    Raises:
        RowFailedError: encrypted, or not a PDF that PDFium can open.

    """
    try:
        opened = pypdfium2.PdfDocument(document.data if document.data is not None else document.path, password=password)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise RowFailedError(
                FailureKind.ENCRYPTED, "the password is wrong" if password else "needs a password: --password"
            ) from error
        raise RowFailedError(FailureKind.UNREADABLE, f"PDFium can't open this PDF: {error}") from error
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, error.strerror or str(error)) from error
    try:
        yield opened
    finally:
        opened.close()


def render_with_pdfium(page: pypdfium2.PdfPage, longest_edge: int) -> Image.Image:
    """Render a page so that its longest edge has that many pixels.

    Raises:
        RowFailedError: a page without area, or one that PDFium can't render.

    """
    width, height = page.get_size()
    if not (width > 0 and height > 0 and math.isfinite(width) and math.isfinite(height)):
        raise RowFailedError(FailureKind.RENDER_FAILED, f"the page measures {width:g} x {height:g} points")
    try:
        # PDFium rounds sizes up: a hundredth of a pixel less keeps the longest edge exact.
        bitmap = page.render(scale=(longest_edge - 0.01) / max(width, height))
        image: Image.Image = bitmap.to_pil().convert("RGB")
        return image
    except (pypdfium2.PdfiumError, ValueError, MemoryError, OverflowError) as error:
        raise RowFailedError(FailureKind.RENDER_FAILED, f"PDFium can't render this page: {error}") from error


def text_ems(page: pypdfium2.PdfPage) -> list[float]:
    """Return the em of up to 400 characters, evenly sampled from the text layer, as shares of the longest edge.

    The list is empty where the layer says too little: fewer than 32 characters on a page that shows an image may
    be a stamp on a scan.
    """
    width, height = page.get_size()
    text = page.get_textpage()
    try:
        count = text.count_chars()
        if count < 32 and (
            count == 0 or any(True for _ in page.get_objects(filter=[pdfium_c.FPDF_PAGEOBJ_IMAGE], max_depth=2))
        ):
            return []
        ems = []
        matrix = pdfium_c.FS_MATRIX()
        for index in range(0, count, max(1, count // _SAMPLED_CHARACTERS)):
            if pdfium_c.FPDFText_GetUnicode(text, index) <= 32:
                continue
            size = pdfium_c.FPDFText_GetFontSize(text, index)
            if pdfium_c.FPDFText_GetMatrix(text, index, matrix):
                size *= math.hypot(matrix.c, matrix.d)
            if size > 0:
                ems.append(size / max(width, height))
        return ems
    finally:
        text.close()


def poppler_page_count(document: Document, password: str | None, timeout: float) -> int:
    """Count pages with Poppler.

    Raises:
        RowFailedError: Poppler can't open it either.

    """
    try:
        if document.data is not None:
            info = pdf2image.pdfinfo_from_bytes(document.data, userpw=password, timeout=math.ceil(timeout))
        else:
            info = pdf2image.pdfinfo_from_path(document.path, userpw=password, timeout=math.ceil(timeout))
        return int(info["Pages"])
    except (*_POPPLER_ERRORS, KeyError) as error:
        raise RowFailedError(FailureKind.UNREADABLE, f"Poppler can't open this PDF: {_first_line(error)}") from error


def render_with_poppler(
    document: Document, page: int, longest_edge: int, password: str | None, timeout: float
) -> Image.Image:
    """Render a page (from 1) with Poppler so that its longest edge has that many pixels.

    Raises:
        RowFailedError: Poppler is not installed, or can't render the page.

    """
    if not has_poppler():
        raise RowFailedError(FailureKind.RENDER_FAILED, "Poppler is not installed (pdftoppm, pdfinfo)")
    options = {
        "first_page": page,
        "last_page": page,
        "size": longest_edge,
        "userpw": password,
        "timeout": math.ceil(timeout),
    }
    try:
        if document.data is not None:
            images = pdf2image.convert_from_bytes(document.data, **options)
        else:
            images = pdf2image.convert_from_path(Path(document.path or ""), **options)
    except _POPPLER_ERRORS as error:
        raise RowFailedError(
            FailureKind.RENDER_FAILED, f"Poppler can't render this page: {_first_line(error)}"
        ) from error
    for image in itertools.islice(images, 1):
        rgb: Image.Image = image.convert("RGB")
        return rgb
    raise RowFailedError(FailureKind.RENDER_FAILED, "Poppler rendered no page")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
