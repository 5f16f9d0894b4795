"""Opens and renders PDF pages, with PDFium and with Poppler.

PDFium is not thread-safe and can hang or crash in C: only page processes call this module.
"""

from __future__ import annotations

import math
import os
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

_SAMPLED_CHARACTERS = 400


def is_pdf(head: bytes) -> bool:
    """Whether the first bytes of a file are a PDF's; readers accept some junk before the mark."""
    return b"%PDF-" in head[:1024]


def has_poppler() -> bool:
    """Whether Poppler's programs are on the PATH."""
    return shutil.which("pdftoppm") is not None and shutil.which("pdfinfo") is not None


@contextmanager
def pdfium(path: str, password: str | None) -> Iterator[pypdfium2.PdfDocument]:
    """Open a file with PDFium.

    Raises:
        RowFailedError: encrypted, or not a PDF that PDFium can open.

    """
    _start_afresh()
    try:
        opened = pypdfium2.PdfDocument(Path(path), password=password)
    except pypdfium2.PdfiumError as error:
        if pdfium_c.FPDF_GetLastError() == pdfium_c.FPDF_ERR_PASSWORD:
            raise _encrypted(password) from error
        raise RowFailedError(FailureKind.UNREADABLE, f"PDFium can't open this PDF: {_words(error)}") from error
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, error.strerror or str(error)) from error
    try:
        yield opened
    finally:
        opened.close()


def _start_afresh() -> None:
    """Make PDFium forget earlier documents.

    It remembers which fonts stood in for those that were not embedded: a page's pixels would depend on the pages drawn
    before it. And the last error outlives its call: a PDF without pages would have that of the one before it.
    """
    pdfium_c.FPDF_DestroyLibrary()
    pdfium_c.FPDF_InitLibraryWithConfig(pdfium_c.FPDF_LIBRARY_CONFIG(version=2))
    pdfium_c.FPDF_LoadMemDocument64(b"", 0, None)  # leaves the error "no PDF"


def render_with_pdfium(page: pypdfium2.PdfPage, longest_edge: int) -> Image.Image:
    """Render a page so that its longest edge has that many pixels.

    Raises:
        RowFailedError: a page without area, or one that PDFium can't render.
        MemoryError: there is not enough for it.

    """
    width, height = page.get_size()
    if not (width > 0 and height > 0 and math.isfinite(width) and math.isfinite(height)):
        raise RowFailedError(FailureKind.RENDER_FAILED, f"the page measures {width:g} x {height:g} points")
    try:
        # PDFium rounds sizes up: a hundredth of a pixel less keeps the longest edge exact.
        bitmap = page.render(scale=(longest_edge - 0.01) / max(width, height))
        image: Image.Image = bitmap.to_pil().convert("RGB")
        return image
    except (pypdfium2.PdfiumError, ValueError, OverflowError) as error:
        raise RowFailedError(FailureKind.RENDER_FAILED, f"PDFium can't render this page: {_words(error)}") from error


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


def poppler_page_count(path: str, password: str | None) -> int:
    """Count pages with Poppler.

    Raises:
        RowFailedError: Poppler can't open it either, or is not installed.

    """
    with _poppler_failures(password, FailureKind.UNREADABLE):
        return int(pdf2image.pdfinfo_from_path(_absolute(path), userpw=password)["Pages"])


def render_with_poppler(path: str, page: int, longest_edge: int, password: str | None) -> Image.Image:
    """Render a page (from 1) with Poppler so that its longest edge has that many pixels.

    Poppler's programs are ended with the page process, whose group they are in.

    Raises:
        RowFailedError: Poppler is not installed, or can't render the page.

    """
    with _poppler_failures(password, FailureKind.RENDER_FAILED):
        images = pdf2image.convert_from_path(
            _absolute(path), first_page=page, last_page=page, size=longest_edge, userpw=password
        )
    if not images:
        raise RowFailedError(FailureKind.RENDER_FAILED, "Poppler rendered no page")
    rgb: Image.Image = images[0].convert("RGB")
    return rgb


@contextmanager
def _poppler_failures(password: str | None, kind: FailureKind) -> Iterator[None]:
    """Turn what pdf2image raises into failures."""
    try:
        yield
    except pdf2image.exceptions.PDFInfoNotInstalledError as error:
        raise RowFailedError(kind, "Poppler is not installed (pdftoppm, pdfinfo)") from error
    except (
        pdf2image.exceptions.PDFPageCountError,
        pdf2image.exceptions.PDFSyntaxError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if "password" in words.lower():
            raise _encrypted(password) from error
        if "memory" in words.lower() or "bad_alloc" in words:
            raise RowFailedError(
                FailureKind.TOO_LARGE, f"Poppler needs more memory than it may use: {words}"
            ) from error
        raise RowFailedError(kind, f"Poppler can't read this PDF: {words}") from error


def _absolute(path: str) -> str:
    """Return a path that can't be taken for an option."""
    return os.path.abspath(path)  # noqa: PTH100 - a Path would be no shorter


def _encrypted(password: str | None) -> RowFailedError:
    return RowFailedError(
        FailureKind.ENCRYPTED, "the password is wrong" if password else "needs a password: --password"
    )


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
