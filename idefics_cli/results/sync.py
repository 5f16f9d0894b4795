"""Brings what is written to the disk, within a second."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Protocol

from idefics_cli.errors import OutputError

_SYNC_EVERY = 1.0  # seconds
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # of pipes, devices, and folders of some file systems


class Sink(Protocol):
    """Takes bytes, at once or in part: an unbuffered file."""

    def write(self, data: bytes, /) -> int | None:
        """Write and return how many bytes were taken; None when none could be without waiting."""

    def fileno(self) -> int:
        """Return its descriptor; raises OSError when it has none."""


class Syncer:
    """Syncs a file within a second of a write, in a thread of its own; what fails there is raised at the next call."""

    def __init__(self, sink: Sink, name: str = "the output") -> None:
        self._sink, self._name = sink, name
        self._is_file = file_size(sink) is not None
        self._timer: threading.Timer | None = None
        self._error: OSError | None = None
        self._lock = threading.Lock()  # the descriptor may be another's once the file is closed
        self._is_closed = False

    def check(self) -> None:
        """Raise what a sync in the background met."""
        if self._error is not None:
            raise OutputError(f"can't sync {self._name}: {self._error.strerror}; its last rows may be lost")

    def written(self) -> None:
        """Sync soon: the next row may be long in coming."""
        if self._is_file and self._timer is None:
            self._timer = threading.Timer(_SYNC_EVERY, self._sync)
            self._timer.daemon = True
            self._timer.start()

    def sync(self) -> None:
        """Sync now; raises OutputError when this or an earlier sync failed."""
        if self._timer is not None:
            self._timer.cancel()
        self._sync()
        self.check()

    def close(self) -> None:
        """Sync for the last time; raises OutputError as `sync`."""
        try:
            self.sync()
        finally:
            with self._lock:
                self._is_closed = True

    def _sync(self) -> None:
        self._timer = None
        with self._lock:
            if not self._is_file or self._is_closed:
                return
            try:
                os.fsync(self._sink.fileno())
            except ValueError:
                return  # its owner has closed it
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    self._error = error


def file_size(sink: Sink) -> int | None:
    """Return the bytes in a regular file; None of anything else."""
    try:
        status = os.fstat(sink.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def sync_folder(folder: Path) -> None:
    """Bring a new or replaced name in a folder to the disk; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
