"""Decides which rasterizer renders a page, at what size, and whether it is to be split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pypdfium2
from PIL import Image

from idefics_cli.config import PageSettings, Rasterizer, Split
from idefics_cli.documents import images, pdf
from idefics_cli.documents.text_size import em_from_ink, em_from_text_layer
from idefics_cli.errors import FailureKind, RowFailedError

_HEAD = 1024


@dataclass(frozen=True, slots=True)
class Edges:
    """Sizes in pixels that an image processor asks for."""

    single: int
    """Longest edge of one image; the size of text is measured on it."""
    unsplit: int
    """Longest edge at which a page is rendered."""
    split: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page in pixels."""

    image: Image.Image
    rasterizer: str
    """pdfium, poppler or pillow."""
    split: bool
    """Whether it is to be cut into sub-images."""
    warning: str = ""


def count_pages(path: str, settings: PageSettings, password: str | None) -> tuple[bool, int]:
    """Return whether a file is a PDF, and how many pages it has.

    A file that is no image, and lacks the mark of a PDF or has it damaged, is one if a rasterizer opens it.

    Raises:
        RowFailedError: nothing opens it.

    """
    with Path(path).open("rb") as stream:
        head = stream.read(_HEAD)
    if pdf.is_pdf(head):
        return True, _count_pdf_pages(path, password)
    try:
        return False, images.frame_count(path, settings.max_pixels)
    except RowFailedError as no_image:
        if no_image.failure.kind is not FailureKind.UNSUPPORTED:
            raise
        try:
            return True, _count_pdf_pages(path, password)
        except RowFailedError:
            raise no_image from None


def render_image(path: str, page: int, settings: PageSettings, edges: Edges) -> Rendered:
    """Decode a page (from 1) of an image file.

    Raises:
        RowFailedError: it can't be decoded.

    """
    image = images.load_frame(path, page, settings.max_pixels, edges.split)
    return Rendered(image, "pillow", _is_split_by_ink(image, settings, edges))


def render_pdf(path: str, page: int, settings: PageSettings, password: str | None, edges: Edges) -> Rendered:
    """Render a page (from 1) with the chosen rasterizer; what PDFium can't do, Poppler tries where it is installed.

    Raises:
        RowFailedError: it can't be rendered.

    """
    if settings.rasterizer is Rasterizer.POPPLER:
        return _render_with_poppler(path, page, settings, password, edges)
    try:
        with pdf.pdfium(path, password) as opened:
            return _render_with_pdfium(opened, page, settings, edges)
    except RowFailedError as error:
        if not pdf.has_poppler():
            raise
        try:
            rendered = _render_with_poppler(path, page, settings, password, edges)
        except RowFailedError as second:
            raise (second if second.failure.kind is FailureKind.TOO_LARGE else error) from None
        # Poppler draws what it can't read as white paper.
        if is_blank(rendered.image):
            detail = f"{error.failure.detail}; Poppler shows a blank page"
            raise RowFailedError(error.failure.kind, detail) from None
        return Rendered(rendered.image, rendered.rasterizer, rendered.split, f"rendered by Poppler: {error}")


def is_blank(image: Image.Image) -> bool:
    """Whether an image is of one flat colour."""
    return all(isinstance(band, tuple) and band[0] == band[1] for band in image.getextrema())


def _count_pdf_pages(path: str, password: str | None) -> int:
    try:
        with pdf.pdfium(path, password) as opened:
            return len(opened)
    except RowFailedError as error:
        if not pdf.has_poppler():
            raise
        try:
            return pdf.poppler_page_count(path, password)
        except RowFailedError:
            raise error from None


def _render_with_pdfium(opened: pypdfium2.PdfDocument, page: int, settings: PageSettings, edges: Edges) -> Rendered:
    try:
        loaded = opened[page - 1]
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise RowFailedError(FailureKind.RENDER_FAILED, f"PDFium can't load this page: {error}") from error
    em = None
    if settings.split is Split.AUTO:
        em = em_from_text_layer(pdf.text_ems(loaded), edges.single)
    # Without a text layer the ink decides, and fine ink shows only at the finer size.
    split = settings.split is Split.ALWAYS or (settings.split is Split.AUTO and (em is None or em < settings.split_em))
    image = pdf.render_with_pdfium(loaded, edges.split if split else edges.unsplit)
    if split and em is None:
        split = _is_split_by_ink(image, settings, edges)
    return Rendered(image, "pdfium", split)


def _render_with_poppler(path: str, page: int, settings: PageSettings, password: str | None, edges: Edges) -> Rendered:
    edge = edges.unsplit if settings.split is Split.NEVER else edges.split
    image = pdf.render_with_poppler(path, page, edge, password)
    return Rendered(image, "poppler", _is_split_by_ink(image, settings, edges))


def _is_split_by_ink(image: Image.Image, settings: PageSettings, edges: Edges) -> bool:
    """Whether an image is to be split; one that fits a single image as it is gains nothing from it."""
    if settings.split is not Split.AUTO:
        return settings.split is Split.ALWAYS
    if max(image.size) <= edges.single:
        return False
    em = em_from_ink(image, edges.single)
    return em is not None and em < settings.split_em
