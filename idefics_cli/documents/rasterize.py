"""Pages in processes of their own: counting, rendering, the decision to split, and crops.

A page that crashes or hangs its process loses that page alone: the process is ended at the time limit and replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import mmap
import multiprocessing
import resource
import signal
import time
import warnings
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pypdfium2
from pebble import ProcessExpired, ProcessFuture, ProcessPool
from PIL import Image

from idefics_cli.config import ImageGeometry, PageSettings, Rasterizer, Split
from idefics_cli.documents import images, pdf
from idefics_cli.documents.crops import make_crops
from idefics_cli.documents.memory import Handle, Place, open_memory, read_crops, shared_memory, write_crops
from idefics_cli.documents.splitting import em_from_ink, em_from_text_layer
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document, PreparedPage

_INSPECT_TIMEOUT = 120.0  # seconds to hash and open one document
_HEAD = 1024
_MEMORY = 2_000_000_000  # bytes of a page process: 250 megapixels in RGB, twice, and the libraries

_Result = TypeVar("_Result", "DocumentInfo", PreparedPage)


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What a document is, once opened."""

    pages: int
    digest: str
    """sha256 of its bytes."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    image: Image.Image
    rasterizer: str
    split: bool
    warning: str = ""


class PagePool:
    """Processes that inspect documents and prepare pages."""

    def __init__(self, settings: PageSettings) -> None:
        self._settings = settings
        self._memory = shared_memory()
        # spawn: PDFium and threads of the parent do not survive a fork
        self._pool = ProcessPool(
            max_workers=settings.worker_count,
            context=multiprocessing.get_context("spawn"),
            initializer=_begin_worker,
            initargs=[self._memory.handle if self._memory else None],
        )

    def __enter__(self) -> PagePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.stop()
        self._pool.join()

    @property
    def workers(self) -> int:
        """How many pages are prepared at the same time."""
        return self._settings.worker_count

    def inspect(self, document: Document) -> ProcessFuture:
        """Start to open a document; the future holds a `DocumentInfo` (see `result_of`)."""
        return self._pool.schedule(inspect, args=[document, self._settings], timeout=_INSPECT_TIMEOUT)

    def prepare(self, document: Document, page: int, geometry: ImageGeometry) -> PageFuture:
        """Start to prepare a page (from 1); the future holds a `PreparedPage` (see `result_of`)."""
        place = self._memory.take() if self._memory else None
        slot, bytes_there = place or (None, None)
        future = self._pool.schedule(
            _prepare_in_worker,
            args=[document, page, self._settings, geometry, slot],
            timeout=self._settings.page_timeout,
        )
        return PageFuture(future, bytes_there)


class PageFuture:
    """A page under way; its crops come through shared memory where there is a place for them."""

    def __init__(self, future: ProcessFuture, place: Place | None) -> None:
        self._future: ProcessFuture | None = future
        self._place = place
        self._page: PreparedPage | None = None
        if place is not None:  # no other page may have the place before the process is done with it
            future.add_done_callback(functools.partial(_hold, place))

    def result(self) -> PreparedPage:
        """Wait for the page; raises what its process raised."""
        if self._future is not None:
            page, shapes = self._future.result()
            if shapes is not None:
                assert self._place is not None
                page = dataclasses.replace(page, crops=read_crops(self._place, shapes))
            # From here on the crops alone keep the place.
            self._page, self._place, self._future = page, None, None
        assert self._page is not None
        return self._page


def result_of(future: Any, kind: type[_Result]) -> _Result:
    """Wait for what a page process was asked for.

    Raises:
        RowFailedError: the document or page failed, its process died, or its time ran out.

    """
    try:
        result = future.result()
    except FutureTimeoutError:
        raise RowFailedError(
            FailureKind.TIMED_OUT, "the page took longer than --page-timeout; its process was ended"
        ) from None
    except ProcessExpired as error:
        raise RowFailedError(
            FailureKind.RENDER_FAILED, f"the page's process died (exit code {error.exitcode})"
        ) from error
    except MemoryError as error:
        raise RowFailedError(FailureKind.TOO_LARGE, "the page needs more memory than there is") from error
    assert isinstance(result, kind)
    return result


def inspect(document: Document, settings: PageSettings) -> DocumentInfo:
    """Open a document, count its pages and hash its bytes.

    Raises:
        RowFailedError: it can't be read.

    """
    digest = hashlib.sha256()
    try:
        if document.data is not None:
            digest.update(document.data)
            head = document.data[:_HEAD]
        else:
            path = Path(document.path or "")
            if not path.is_file():
                words = "no such file" if not path.exists() else "not a regular file"
                raise RowFailedError(FailureKind.UNREADABLE, words)
            with path.open("rb") as stream:
                head = stream.read(_HEAD)
                stream.seek(0)
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, error.strerror or str(error)) from error
    if not head:
        raise RowFailedError(FailureKind.UNREADABLE, "the file is empty")
    pages = (
        _count_pdf_pages(document, settings) if pdf.is_pdf(head) else images.frame_count(document, settings.max_pixels)
    )
    if pages < 1:
        raise RowFailedError(FailureKind.UNREADABLE, "the document has no pages")
    if settings.max_pages and pages > settings.max_pages:
        raise RowFailedError(FailureKind.TOO_LARGE, f"{pages} pages are more than --max-pages {settings.max_pages}")
    return DocumentInfo(pages, digest.hexdigest())


def prepare(document: Document, page: int, settings: PageSettings, geometry: ImageGeometry) -> PreparedPage:
    """Rasterize a page (from 1), decide whether to split it, and cut its crops.

    Raises:
        RowFailedError: the page can't be rendered.

    """
    started = time.perf_counter()
    if pdf.is_pdf(_head(document)):
        rendered = _render_pdf(document, page, settings, geometry)
    else:
        image = images.load_frame(document, page, settings.max_pixels)
        rendered = _Rendered(image, "pillow", _split_by_ink(image, settings, geometry))
    rasterized = time.perf_counter()
    crops = make_crops(rendered.image, split=rendered.split, geometry=geometry)
    warning = "; ".join(filter(None, (rendered.warning, _blank_warning(rendered.image))))
    done = time.perf_counter()
    return PreparedPage(crops, rendered.rasterizer, (rasterized - started) * 1e3, (done - rasterized) * 1e3, warning)


def _render_pdf(document: Document, page: int, settings: PageSettings, geometry: ImageGeometry) -> _Rendered:
    """Render with the chosen rasterizer; what PDFium can't do, Poppler tries where it is installed."""
    if settings.rasterizer is Rasterizer.POPPLER:
        return _render_with_poppler(document, page, settings, geometry)
    try:
        with pdf.pdfium(document, settings.password) as opened:
            return _render_with_pdfium(opened, page, settings, geometry)
    except RowFailedError as failure:
        if failure.kind is FailureKind.ENCRYPTED or not pdf.has_poppler():
            raise
        try:
            rendered = _render_with_poppler(document, page, settings, geometry)
        except RowFailedError:
            raise failure from None
        return _Rendered(rendered.image, rendered.rasterizer, rendered.split, f"rendered by Poppler: {failure.words}")


def _render_with_pdfium(
    opened: pypdfium2.PdfDocument, page: int, settings: PageSettings, geometry: ImageGeometry
) -> _Rendered:
    try:
        loaded = opened[page - 1]
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise RowFailedError(FailureKind.RENDER_FAILED, f"PDFium can't load this page: {error}") from error
    em = None
    if settings.split is Split.AUTO:
        em = em_from_text_layer(pdf.text_ems(loaded), geometry.longest_edge)
    # Without a text layer the ink decides, and fine ink shows at the finer size alone.
    split = settings.split is Split.ALWAYS or (settings.split is Split.AUTO and (em is None or em < settings.split_em))
    image = pdf.render_with_pdfium(loaded, geometry.longest_edge * (2 if split else 1))
    if split and em is None:
        split = _split_by_ink(image, settings, geometry)
    return _Rendered(image, "pdfium", split)


def _render_with_poppler(document: Document, page: int, settings: PageSettings, geometry: ImageGeometry) -> _Rendered:
    edge = geometry.longest_edge * (1 if settings.split is Split.NEVER else 2)
    image = pdf.render_with_poppler(document, page, edge, settings.password, settings.page_timeout)
    return _Rendered(image, "poppler", _split_by_ink(image, settings, geometry))


def _split_by_ink(image: Image.Image, settings: PageSettings, geometry: ImageGeometry) -> bool:
    """Whether an image is to be split; one that fits a single image as it is gains nothing from it."""
    if settings.split is not Split.AUTO:
        return settings.split is Split.ALWAYS
    if max(image.size) <= geometry.longest_edge:
        return False
    em = em_from_ink(image, geometry.longest_edge)
    return em is not None and em < settings.split_em


def _count_pdf_pages(document: Document, settings: PageSettings) -> int:
    try:
        with pdf.pdfium(document, settings.password) as opened:
            return len(opened)
    except RowFailedError as failure:
        if failure.kind is FailureKind.ENCRYPTED or not pdf.has_poppler():
            raise
        try:
            return pdf.poppler_page_count(document, settings.password, _INSPECT_TIMEOUT)
        except RowFailedError:
            raise failure from None


def _head(document: Document) -> bytes:
    if document.data is not None:
        return document.data[:_HEAD]
    try:
        with Path(document.path or "").open("rb") as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise RowFailedError(FailureKind.UNREADABLE, error.strerror or str(error)) from error


def _blank_warning(image: Image.Image) -> str:
    extrema = image.getextrema()
    flat = all(isinstance(band, tuple) and band[0] == band[1] for band in extrema)
    return "blank page: one flat colour" if flat else ""


_memory: mmap.mmap | None = None
"""Of a page process: where crops go."""


def _begin_worker(handle: Handle | None) -> None:
    """Set a page process up. Ctrl-C goes to the whole foreground group; the parent alone decides what it means."""
    global _memory  # a process has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # what is wrong with a document stands in its row
    # A page that asks for more fails alone. What is shared with the parent does not count as data.
    limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY if limit < 0 else min(_MEMORY, limit), limit))
    _memory = open_memory(handle) if handle is not None else None


def _prepare_in_worker(
    document: Document, page: int, settings: PageSettings, geometry: ImageGeometry, slot: int | None
) -> tuple[PreparedPage, list[tuple[int, ...]] | None]:
    """Prepare a page; its crops go to the slot, and their shapes back, where they fit."""
    prepared = prepare(document, page, settings, geometry)
    if slot is None or _memory is None or not write_crops(_memory, slot, prepared.crops):
        return prepared, None
    return dataclasses.replace(prepared, crops=()), [crop.shape for crop in prepared.crops]


def _hold(place: Place, future: ProcessFuture) -> None:
    """Keep a place taken as long as a future that is not done."""
