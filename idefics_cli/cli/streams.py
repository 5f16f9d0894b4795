"""Keeps stdout for results: whatever a library prints goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


@contextmanager
def results_on_stdout() -> Iterator[IO[str]]:
    """Yield the real stdout; meanwhile descriptor 1, and with it every print, is stderr."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    stream = os.fdopen(real, "w", encoding="utf-8", newline="", closefd=True)
    try:
        yield stream
        stream.flush()
    finally:
        with suppress(BrokenPipeError):
            stream.close()
        sys.stdout.flush()


def forget_stdout() -> None:
    """Point descriptor 1 at nothing, so that a closed pipe raises nothing more at exit."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
