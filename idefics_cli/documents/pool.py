"""Processes that open documents and prepare pages.

A page that crashes or hangs its process loses only itself: the process is ended at the time limit and replaced.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from idefics_cli.config import PageSettings
from idefics_cli.documents.page import DocumentInfo, ImageProcessor, open_document, prepare_page
from idefics_cli.documents.page_process import PageProcess, ProcessDiedError
from idefics_cli.documents.shared_memory import SharedMemory, read_crops, shared_memory
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document, PreparedPage

OPEN_TIMEOUT = 120.0
"""Seconds that fetching, hashing and opening one document may take."""
_ATTEMPTS = 2  # at a page whose process dies: it may have been killed for another's sake

_Result = TypeVar("_Result")
PageFuture = Future[PreparedPage]


class PagePool:
    """Opens documents and prepares pages, so many at a time; its processes are started when they are first needed."""

    def __init__(
        self, settings: PageSettings, *, open_timeout: float = OPEN_TIMEOUT, memory: SharedMemory | None = None
    ) -> None:
        """Take how pages are prepared.

        Args:
            settings: of pages.
            open_timeout: seconds that opening a document may take.
            memory: that crops are written into, where others read them there too; None takes some of its own.

        """
        self._settings, self._open_timeout = settings, open_timeout
        self.memory = memory or shared_memory()
        """That pages come in; None where the system has none."""
        # Each thread has a process of its own, and waits for it.
        self._threads = ThreadPoolExecutor(settings.worker_count, "page process")
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._made_folders: list[str] = []
        self._delete_folders = weakref.finalize(self, _delete_folders, self._made_folders)
        self._processes: set[PageProcess] = set()
        self._is_closed = threading.Event()
        self._is_view = False
        self.workers = settings.worker_count
        """How many pages are prepared at the same time."""

    def __enter__(self) -> PagePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, and delete what was fetched; pages that are not ready are cancelled.

        What `with_settings` returned is closed with the pool that it is of.
        """
        if self._is_view:
            return
        with self._lock:
            self._is_closed.set()
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.end()
        self._delete_folders()

    @property
    def folder(self) -> str | None:
        """Where files for its processes may be kept; it goes with the last of them, also when this one is killed."""
        return self._folder

    def with_settings(self, settings: PageSettings) -> PagePool:
        """Return the same processes, which prepare pages by other settings; how many there are stays."""
        view = copy.copy(self)
        view._settings, view._is_view = settings, True  # noqa: SLF001 - its own
        return view

    @property
    def page_identity(self) -> str:
        """What of the settings the pixels of a page depend on."""
        return f"{self._settings.split} {self._settings.split_em:g} {self._settings.rasterizer}"

    def open(self, document: Document) -> Future[DocumentInfo]:
        """Start to open a document (see `result_of`)."""
        return self._threads.submit(self._open, document)

    def prepare(self, document: Document, info: DocumentInfo, page: int, processor: ImageProcessor) -> PageFuture:
        """Start to prepare a page (from 1) of an opened document (see `result_of`)."""
        # Its bytes lie in a file by now.
        return self._threads.submit(self._prepare, dataclasses.replace(document, data=None), info, page, processor)

    def _open(self, document: Document) -> DocumentInfo:
        limit = f"opening the document took longer than {self._open_timeout:g} seconds; its process was ended"
        info = self._call(self._open_timeout, limit, None, open_document, document, self._settings, self._folder)
        assert isinstance(info, DocumentInfo)
        if document.path is None:
            weakref.finalize(info, _delete, info.path)
        return info

    def _prepare(self, document: Document, info: DocumentInfo, page: int, processor: ImageProcessor) -> PreparedPage:
        # No other page may have the slot before the process is done with it: this thread holds it until then.
        slot, buffer = (self.memory.take() if self.memory else None) or (None, None)
        seconds = self._settings.page_timeout
        limit = f"the page took longer than --page-timeout {seconds:g}; its process was ended"
        arguments = (document, info, page, self._settings, processor)
        prepared, shapes = self._call(seconds, limit, slot, prepare_page, *arguments)
        assert isinstance(prepared, PreparedPage)
        if shapes is None:
            return prepared
        assert buffer is not None
        return dataclasses.replace(prepared, crops=read_crops(buffer, shapes))

    def _call(self, seconds: float, limit: str, slot: int | None, *call: Any) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            process = self._process()
            try:
                return process.call(seconds, slot, *call)
            except TimeoutError:
                raise RowFailedError(FailureKind.TIMED_OUT, limit) from None
            except ProcessDiedError as error:
                if self._is_closed.is_set():
                    raise CancelledError from None
                if attempt == _ATTEMPTS:
                    raise RowFailedError(FailureKind.RENDER_FAILED, str(error)) from error
        raise AssertionError

    @property
    def _folder(self) -> str | None:
        """Where fetched documents go, or None where no folder can be made: only they need it.

        Made with the first document, from when on page processes delete it, should this process be killed.
        """
        with self._lock:
            if not self._made_folders:
                try:
                    self._made_folders.append(tempfile.mkdtemp(prefix="idefics-cli-"))
                except OSError:
                    return None
            return self._made_folders[0]

    def _process(self) -> PageProcess:
        """Return this thread's process, a new one where it has none that lives."""
        process: PageProcess | None = getattr(self._of_thread, "process", None)
        if process is not None:
            if process.is_alive:
                return process
            process.end()
            with self._lock:
                self._processes.remove(process)
        try:
            new = PageProcess(self.memory.descriptor if self.memory else None, self._folder)
        except OSError as error:  # no room for another process or pipe
            raise RowFailedError(FailureKind.RENDER_FAILED, f"no page process can be started: {error}") from error
        self._of_thread.process = new
        with self._lock:
            self._processes.add(new)
            if self._is_closed.is_set():
                new.kill()
        return new


def result_of(future: Future[_Result], kind: type[_Result]) -> _Result:
    """Wait for what a page process was asked for.

    Raises:
        RowFailedError: the document or page failed, its process died, or its time ran out.

    """
    result = future.result()
    assert isinstance(result, kind)
    return result


def _delete_folders(paths: Sequence[str]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: str) -> None:
    Path(path).unlink(missing_ok=True)
