"""Opens and renders PDF pages, with PDFium and with Poppler.

PDFium is not thread-safe and can hang or crash in C: only page processes call this module.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    told = _run_poppler(["pdfinfo"], path, password, FailureKind.UNREADABLE).decode("utf-8", "replace")
    if (pages := re.search(r"^Pages:\s*(\d+)", told, re.MULTILINE)) is None:
        raise RowFailedError(FailureKind.UNREADABLE, "Poppler finds no pages in this PDF")
    return int(pages[1])


def render_with_poppler(path: str, page: int, longest_edge: int, password: str | None) -> Image.Image:
    """Render a page (from 1) with Poppler so that its longest edge has that many pixels.

    Raises:
        RowFailedError: Poppler is not installed, or can't render the page.

    """
    command = ["pdftoppm", "-f", str(page), "-l", str(page), "-scale-to", str(longest_edge)]
    pixels = _run_poppler(command, path, password, FailureKind.RENDER_FAILED)
    if not pixels:
        raise RowFailedError(FailureKind.RENDER_FAILED, "Poppler rendered no page")
    return Image.open(io.BytesIO(pixels)).convert("RGB")


def _run_poppler(command: list[str], path: str, password: str | None, kind: FailureKind) -> bytes:
    """Return what one of Poppler's programs writes; it is ended with the page process, whose group it is in."""
    if password is not None:
        command = [*command, "-upw", password]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the path is absolute: it can't be taken for an option
            [*command, os.path.abspath(path)],  # noqa: PTH100 - a Path would be no shorter
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise RowFailedError(kind, "Poppler is not installed (pdftoppm, pdfinfo)") from error
    if done.returncode == 0:
        return done.stdout
    words = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "password" in words.lower():
        raise _encrypted(password)
    if "memory" in words.lower() or "bad_alloc" in words:
        raise RowFailedError(FailureKind.TOO_LARGE, f"Poppler needs more memory than it may use: {words}")
    raise RowFailedError(kind, f"Poppler can't read this PDF: {words}")


def _encrypted(password: str | None) -> RowFailedError:
    return RowFailedError(
        FailureKind.ENCRYPTED, "the password is wrong" if password else "needs a password: --password"
    )


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
