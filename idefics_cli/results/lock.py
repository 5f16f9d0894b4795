"""One run an output: an advisory lock on the file, which the system drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.errors import OutputBusyError, OutputError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of an output file; the lock stands in a hidden file beside it, since `--overwrite` replaces it.

    Raises:
        OutputBusyError: another run holds it.
        OutputError: the folder can't be written to.

    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "another run"
            raise OutputBusyError(f"{path}: held by {holder}; wait for it to finish or stop it") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
        beside.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
