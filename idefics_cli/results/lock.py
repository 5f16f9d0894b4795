"""One run an output: an advisory lock, which the system drops when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.errors import OutputBusyError, OutputError

_POLL = 0.2  # seconds between tries
_HOLDER = "process "


@contextlib.contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of an output; it stands in a hidden file beside it, since the output itself may be replaced.

    Args:
        path: the output, links resolved.
        wait: seconds to wait for another run that holds it.

    Raises:
        OutputBusyError: another run holds it.
        OutputError: the lock can't be written.

    """
    beside = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + wait
    try:
        descriptor = _acquire(beside, path, deadline)
    except OSError as error:
        raise OutputError(f"{path}: can't be locked: {error.strerror}") from error
    try:
        with _locked_content(path, deadline):
            yield
    finally:
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(beside: Path, path: Path, deadline: float) -> int:
    """Open and lock; a file that its last holder removed in between is opened again."""
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _wait_for(descriptor, path, deadline)
            if _is_same_file(descriptor, beside):
                _sign(descriptor, beside)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def _locked_content(path: Path, deadline: float) -> Iterator[None]:
    """Lock the output too, where it is there and the file system can: a hard link gives it another name."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            _wait_for(descriptor, path, deadline)
        yield


def is_held(path: Path) -> bool:
    """Whether a run holds the lock of an output now; False too where that can't be found out."""
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what a killed run left behind can be locked
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def hold(descriptor: int) -> None:
    """Lock an output that was made or replaced under the lock of its name, for whoever gives it another one."""
    with contextlib.suppress(OSError):  # held already, or a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _wait_for(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
                holder = holder if holder.startswith(_HOLDER) else "another run"
                raise OutputBusyError(f"{path}: held by {holder}; --wait SECONDS waits for it") from error
        time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int, beside: Path) -> None:
    """Write who holds it."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_HOLDER}{os.getpid()}".encode(), 0)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
