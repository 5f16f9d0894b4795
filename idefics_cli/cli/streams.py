"""Keeps stdout for results: whatever a library prints goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import typer

from idefics_cli.cli.exit_codes import NOT_WRITTEN
from idefics_cli.errors import OutputError


@contextmanager
def results_on_stdout() -> Iterator[IO[str]]:
    """Yield the real stdout; meanwhile descriptor 1, and with it every print, is stderr.

    Raises:
        OutputError: what was printed can't be written.
        typer.Exit: nobody reads stdout any more; no error.

    """
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    # A file's name may be no UTF-8: the surrogates that stand for its bytes are shown by their escapes, as on stderr.
    stream = os.fdopen(real, "w", encoding="utf-8", errors="backslashreplace", newline="", closefd=True)
    try:
        yield stream
        stream.flush()
    except BrokenPipeError as error:  # whoever read the rows has had enough
        raise typer.Exit(0) from error
    except OSError as error:
        if error.errno not in NOT_WRITTEN or error.filename is not None:
            raise
        raise OutputError(f"can't write to stdout: {error.strerror}") from error
    finally:
        with suppress(OSError):
            stream.close()
        sys.stdout.flush()
