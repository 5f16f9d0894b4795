"""The lines of a questions file or pipe, and what a reader makes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import IO, NamedTuple

BOM = "\ufeff"
LONGEST_LINE = 256 * 1024 * 1024
EXPORT = "save it as CSV in UTF-8 (in Excel: Save As, 'CSV UTF-8'; in LibreOffice: Text CSV, character set UTF-8)"
"""What helps with text that is not UTF-8, and with spreadsheets."""


class Record(NamedTuple):
    """One line of JSONL, or one record of CSV."""

    line: int
    """Where it begins, from 1."""
    start: int
    """Its first byte."""
    values: dict[str, object]
    problem: str = ""
    """Why it can't be read; `values` then holds what could."""


class Lines:
    """The lines of a stream, decoded, with where each stands. CR, LF and CRLF end a line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.number = 0
        """Lines given so far."""
        self.end = 0
        """Bytes given so far."""
        self.problem = ""
        """What was wrong with a line since the reader last cleared this."""
        self._stream = stream
        self._parts: deque[tuple[bytes, int]] = deque()  # with the length in the stream

    def peek(self) -> bytes:
        """Return the next line that is not blank without giving it; blank ones before it are passed over."""
        while self._parts or self._read():
            if self._parts[0][0].removeprefix(BOM.encode()).strip():
                return self._parts[0][0]
            next(self)
        return b""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self._parts and not self._read():
            raise StopIteration
        raw, length = self._parts.popleft()
        self.number += 1
        self.end += length
        text, problem = decoded(raw, length)
        self.problem = problem or self.problem
        return text.removeprefix(BOM) if self.number == 1 else text

    def _read(self) -> bool:
        chunk = self._stream.readline(LONGEST_LINE)
        length = len(chunk)
        if length == LONGEST_LINE and not chunk.endswith(b"\n"):
            while rest := self._stream.readline(LONGEST_LINE):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
            self._parts.append((chunk[:100], length))
        elif b"\r" in chunk:
            self._parts.extend((part, len(part)) for part in chunk.splitlines(keepends=True))
        elif chunk:
            self._parts.append((chunk, length))
        return length > 0


def decoded(raw: bytes, length: int) -> tuple[str, str]:
    """Return a line's text, and why it can't be read; empty where it can.

    Args:
        raw: the line, or the beginning of one that is too long.
        length: of the whole line, in bytes.

    """
    try:
        text, problem = raw.decode(), ""
    except UnicodeDecodeError as error:
        text = raw.decode(errors="replace")
        problem = (
            f"not UTF-8 (byte 0x{raw[error.start]:02x} after {error.start} others), perhaps Windows-1252: {EXPORT}"
        )
    return text, f"longer than {LONGEST_LINE // 1024 // 1024} MB" if length > len(raw) else problem
