"""What runs in a page process: opening a document, and making crops of one of its pages."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from idefics_cli.config import PageSettings
from idefics_cli.documents import fetch, render
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Crop, Document, PreparedPage

_BLOCK = 1 << 20
_Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change, by which a file is known to be the one that was read."""


class ImageProcessor(Protocol):
    """What a family of checkpoints makes of a page; picklable."""

    @property
    def longest_edge(self) -> int:
        """Of one image, in pixels."""

    def render_edge(self, *, split: bool) -> int:
        """Return the longest edge, in pixels, at which a page is rendered: more than this would be scaled away."""

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        """Return the crops of an RGB page."""

    def columns(self, width: int, height: int, *, split: bool) -> int:
        """Return in how many columns the sub-images of a page stand; 0 where prompts do not say where they stand."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DocumentInfo:
    """What a document is, once opened."""

    pages: int
    digest: str
    """sha256 of its bytes, in hex."""
    path: str
    """The file; a temporary one of what was fetched or came as a data URI."""
    is_pdf: bool
    stamp: _Stamp
    """Of the file that the digest was taken of."""


def open_document(
    document: Document,
    settings: PageSettings,
    folder: str | None = None,
    fetch_into: Callable[[str, str], None] = fetch.fetch,
) -> DocumentInfo:
    """Fetch a document if need be, hash its bytes and count its pages.

    Args:
        document: a file, bytes or an address.
        settings: limits and the password.
        folder: where what has no file is kept; the caller deletes it.
        fetch_into: writes what is at an address into a file.

    Raises:
        RowFailedError: it can't be read.

    """
    if document.path is not None:
        return _opened(document.path, document, settings)
    try:
        descriptor, path = tempfile.mkstemp(prefix="document-", dir=folder)
        os.close(descriptor)
        Path(path).write_bytes(document.data or b"")
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, f"it can't be stored: {error.strerror or error}") from error
    try:
        if document.data is None:
            fetch_into(document.url or "", path)
        return _opened(path, document, settings)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(path).unlink()
        raise


def prepare_page(
    document: Document, info: DocumentInfo, page: int, settings: PageSettings, processor: ImageProcessor
) -> PreparedPage:
    """Rasterize a page (from 1), decide whether to split it, and cut its crops.

    Raises:
        RowFailedError: the page can't be rendered, or the file is not the one that was opened.

    """
    if not 1 <= page <= info.pages:
        raise RowFailedError(FailureKind.NO_SUCH_PAGE, f"page {page} of {info.pages}")
    started = time.perf_counter()
    edges = render.Edges(processor.longest_edge, processor.render_edge(split=False), processor.render_edge(split=True))
    try:
        if info.is_pdf:
            rendered = render.render_pdf(info.path, page, settings, _password(document, settings), edges)
        else:
            rendered = render.render_image(info.path, page, settings, edges)
    finally:
        _check_unchanged(info.path, info.stamp)
    rasterized = time.perf_counter()
    crops = processor.crops(rendered.image, split=rendered.split)
    blank = "blank page: one flat colour" if render.is_blank(rendered.image) else ""
    done = time.perf_counter()
    return PreparedPage(
        crops,
        rendered.rasterizer,
        (rasterized - started) * 1e3,
        (done - rasterized) * 1e3,
        "; ".join(filter(None, (rendered.warning, blank))),
        processor.columns(*rendered.image.size, split=rendered.split),
    )


def _opened(path: str, document: Document, settings: PageSettings) -> DocumentInfo:
    try:
        digest, stamp = _read(path)
        is_pdf, pages = render.count_pages(path, settings, _password(document, settings))
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, error.strerror or str(error)) from error
    except (UnicodeError, ValueError) as error:  # a name that no file can have
        raise RowFailedError(FailureKind.UNREADABLE, str(error)) from error
    _check_unchanged(path, stamp)
    if pages < 1:
        raise RowFailedError(FailureKind.UNREADABLE, "the document has no pages")
    if settings.max_pages and pages > settings.max_pages:
        raise RowFailedError(FailureKind.TOO_LARGE, f"{pages} pages are more than --max-pages {settings.max_pages}")
    return DocumentInfo(pages, digest, path, is_pdf, stamp)


def _read(path: str) -> tuple[str, _Stamp]:
    """Return the sha256 of a file, and the stamp of what was read."""
    if not stat.S_ISREG(Path(path).stat().st_mode):  # a FIFO would be waited for
        raise RowFailedError(FailureKind.UNREADABLE, "not a regular file")
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        stamp = _stamp(os.fstat(stream.fileno()))
        while block := stream.read(_BLOCK):
            digest.update(block)
    if stamp[2] == 0:
        raise RowFailedError(FailureKind.UNREADABLE, "the file is empty")
    return digest.hexdigest(), stamp


def _check_unchanged(path: str, stamp: _Stamp) -> None:
    """Raise RowFailedError if a path no longer leads to the bytes that were hashed."""
    try:
        now: _Stamp | None = _stamp(Path(path).stat())
    except OSError:
        now = None
    if now != stamp:
        raise RowFailedError(FailureKind.UNREADABLE, "changed while it was read")


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _password(document: Document, settings: PageSettings) -> str | None:
    return settings.password if document.password is None else document.password
