"""One run an output: an advisory lock on the file, which the system drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.errors import OutputBusyError, OutputError

_POLL = 0.2  # seconds between tries


@contextlib.contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of an output file; the lock stands in a hidden file beside it, since `--overwrite` replaces it.

    Args:
        path: the output.
        wait: seconds to wait for another run that holds it.

    Raises:
        OutputBusyError: another run holds it.
        OutputError: the folder can't be written to.

    """
    beside = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                descriptor = _acquire(beside, path)
                break
            except OutputBusyError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(beside: Path, path: Path) -> int:
    """Open and lock; a file that its last holder removed in between is opened again."""
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "another run"
            os.close(descriptor)
            raise OutputBusyError(f"{path}: held by {holder}; --wait SECONDS waits for it") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), beside.stat()):
                return descriptor
        os.close(descriptor)
