"""Files that are written beside another and take its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Literal

from idefics_cli.errors import OutputError
from idefics_cli.results.read import OutputReader, StoredRow
from idefics_cli.results.sync import sync_folder

_BUFFER = 1 << 20


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise what the system refuses as OutputError, a closed pipe apart."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise OutputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def open_unbuffered(path: Path, mode: Literal["wb", "ab", "xb"] = "wb") -> FileIO:
    """Open a file or stream for writing; nothing of a row that failed stays in a buffer.

    Raises:
        OutputError: it can't be opened.

    """
    with output_errors(path):
        return FileIO(path, mode)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """Open a file that takes the place of `path`, if that is there, when the block ends well; owner and mode stay.

    The lock of `path` must be held: the file beside it has one name, and what a killed run left of it goes.

    Raises:
        OutputError: it can't be written.

    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with output_errors(path):
            beside.unlink(missing_ok=True)
        with open_unbuffered(beside, "xb") as stream:  # and not what a link of that name leads to
            with output_errors(path):
                _copy_owner(path, stream)
            yield stream
            with output_errors(path):
                os.fsync(stream.fileno())
                beside.replace(path)
                sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def drop_rows(path: Path, is_to_drop: Callable[[int, StoredRow], bool]) -> int:
    """Rewrite an output without some of its rows, and return its size.

    Args:
        path: the output; its lock must be held.
        is_to_drop: takes the number of a row, from 0, and the row.

    Raises:
        OutputError: it can't be written.

    """
    reader = OutputReader(path)
    kept = bytearray()
    with replacing(path) as stream, output_errors(path):
        for index, row in enumerate(reader):
            if index == 0:
                kept += reader.header
            if not is_to_drop(index, row):
                kept += row.raw
            while len(kept) > _BUFFER:
                del kept[: stream.write(kept)]
        while kept:
            del kept[: stream.write(kept)]
        return stream.tell()


def _copy_owner(path: Path, stream: FileIO) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:  # a new file
        return
    with contextlib.suppress(PermissionError):  # of another user's file, only the content can be replaced
        os.fchown(stream.fileno(), status.st_uid, status.st_gid)
    os.fchmod(stream.fileno(), status.st_mode & 0o7777)
