"""Lines in one file, or in several where there are limits to one; never over a file that is there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from io import BufferedWriter
from pathlib import Path

from idefics_cli.config import OutputSettings
from idefics_cli.errors import OutputError
from idefics_cli.results.check import check_inputs, output_file
from idefics_cli.results.lock import locked
from idefics_cli.results.replace import output_errors
from idefics_cli.results.sync import sync_folder


class SplitFiles:
    """Takes lines; a new file begins where the one before is full. None has its name before all are whole."""

    def __init__(self, path: Path, most_lines: int, most_bytes: int) -> None:
        self._path, self._most_lines, self._most_bytes = path, most_lines, most_bytes
        self._parts: list[Path] = []
        self._stream: BufferedWriter | None = None
        self._lines = self._bytes = 0
        self.paths: list[Path] = []
        """The files, once all is written."""

    def write(self, line: bytes) -> None:
        """Write a line, its end included, that fits a file.

        Raises:
            OutputError: it can't be written.

        """
        with output_errors(self._path):
            is_full = self._lines == self._most_lines or self._bytes + len(line) > self._most_bytes
            if self._stream is None or is_full:
                self._begin()
            assert self._stream is not None
            self._stream.write(line)
        self._lines += 1
        self._bytes += len(line)

    def publish(self) -> None:
        """Give the files their names: that of the output where there is one, else numbered ones.

        Raises:
            OutputError: one of the names is taken; none of them is given then.

        """
        with output_errors(self._path):
            self._end()
            names = [self._path] if len(self._parts) == 1 else numbered_names(self._path, len(self._parts))
            try:
                for part, name in zip(self._parts, names, strict=True):
                    _rename_to_new(part, name)
                    self.paths.append(name)
            except BaseException:
                for name in self.paths:
                    name.unlink()
                self.paths.clear()
                raise
            sync_folder(self._path.parent)

    def discard(self) -> None:
        """Delete what has no name yet."""
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._end()
        part = self._path.with_name(f".{self._path.name}.{len(self._parts) + 1}.new")
        part.unlink(missing_ok=True)  # of a killed run; the lock is held
        self._stream = part.open("xb")
        self._parts.append(part)
        self._lines = self._bytes = 0

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None


@contextlib.contextmanager
def split_files(path: Path, most_lines: int, most_bytes: int, inputs: Iterable[Path] = ()) -> Iterator[SplitFiles]:
    """Open files for lines; they have their names when the block ends well, and there are none otherwise.

    Args:
        path: of the one file; several are numbered: `batch-00001.jsonl`.
        most_lines: of a file.
        most_bytes: likewise.
        inputs: files that are read.

    Raises:
        OutputError: a file of one of the names is there, or they can't be written.
        OutputBusyError: another run holds the name.

    """
    real = output_file(OutputSettings(path))
    if real is None:
        raise OutputError(f"{path}: a stream, and there may be several files; name a file")
    if not real.parent.is_dir():
        raise OutputError(f"{path}: no such folder")
    check_inputs(real, inputs)
    with locked(real):
        if (taken := _taken(real)) is not None:
            raise OutputError(f"{taken}: exists, and is not written over: name another output, or move it away")
        for left in real.parent.glob(f".{real.name}.*.new"):
            left.unlink(missing_ok=True)
        files = SplitFiles(real, most_lines, most_bytes)
        try:
            yield files
            files.publish()
        finally:
            files.discard()


def numbered_names(path: Path, count: int) -> list[Path]:
    """Return the names of so many files."""
    return [path.with_name(f"{path.stem}-{number:05}{path.suffix}") for number in range(1, count + 1)]


def _taken(path: Path) -> Path | None:
    """Return a file that has one of the names already."""
    if path.exists():
        return path
    pattern = re.compile(re.escape(path.stem) + r"-[0-9]{5,}" + re.escape(path.suffix))
    return next((other for other in sorted(path.parent.iterdir()) if pattern.fullmatch(other.name)), None)


def _rename_to_new(part: Path, name: Path) -> None:
    """Rename a file, unless the name is taken."""
    try:
        os.link(part, name)
    except FileExistsError as error:
        raise OutputError(f"{name}: exists, and is not written over") from error
    except OSError:  # a file system without hard links
        if name.exists():
            raise OutputError(f"{name}: exists, and is not written over") from None
        part.rename(name)
