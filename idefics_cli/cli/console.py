"""What a command says: messages on stderr through `logging`, tables on stdout."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from idefics_cli.config import MessageSettings

if TYPE_CHECKING:
    from rich.table import Table

_NOTE = 25
_PREFIXES = {logging.ERROR: "error: ", logging.WARNING: "warning: ", _NOTE: "note: "}
_WIDTH = 120  # of a table that goes to a file or a pipe

log = logging.getLogger("idefics_cli")


class _StderrHandler(logging.Handler):
    """Prints to stderr as it is when a message comes: a progress line may stand in between."""

    def __init__(self, *, is_dated: bool) -> None:
        super().__init__()
        self._is_dated = is_dated

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        prefix = getattr(record, "prefix", _PREFIXES.get(record.levelno, ""))
        with suppress(OSError, ValueError):
            print(f"{_now()} " * self._is_dated + prefix + self.format(record), file=sys.stderr, flush=True)


def set_up_messages(messages: MessageSettings, *, is_dated: bool = False) -> None:
    """Say on stderr what the user wants to be told.

    Args:
        messages: errors only (`quiet`), or all that is chosen and done (`verbose`).
        is_dated: whether each message begins with the time, as in a log file.

    """
    log.handlers[:] = [_StderrHandler(is_dated=is_dated)]
    log.propagate = False
    log.setLevel(logging.ERROR if messages.quiet else logging.DEBUG if messages.verbose else _NOTE)


def note(words: str) -> None:
    """Tell the user something worth knowing."""
    log.log(_NOTE, "%s", words)


def summary(words: str, *, is_failure: bool) -> None:
    """Say what a run has come to; with `--quiet` only where something failed."""
    log.log(logging.ERROR if is_failure else _NOTE, "%s", words, extra={"prefix": ""})


def end_message(words: object, prefix: str) -> None:
    """Say why the command ends early; with `--verbose` also where in the program."""
    if not log.handlers:
        set_up_messages(MessageSettings())
    log.debug("traceback", exc_info=True)
    log.error("%s", words, extra={"prefix": prefix})


def print_table(table: Table, stdout: IO[str]) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    Console(file=stdout, width=None if stdout.isatty() else _WIDTH, highlight=False).print(table)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
