"""How a process ends: signals, exit codes, and one line for every error. Nothing heavy is imported here."""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False  # typing, like all else, is imported once the handlers are there
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

NOT_WRITTEN = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF)
"""Errors of a stream that takes no more."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.detail = ""
        """What the user should know of what is done."""

    def __str__(self) -> str:
        return ("interrupted" if self.number == signal.SIGINT else "terminated") + self.detail


def open_closed_streams() -> None:
    """Open the standard streams that are closed, before a file takes their descriptor and gets what is printed.

    Reading stdin and writing to stdout then fail as they would; what is said on stderr is lost.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            is_wrong_way = os.O_RDONLY if number else os.O_WRONLY
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else is_wrong_way)  # takes the lowest free number
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def handle_signals() -> None:
    """Raise `Interrupted` in the main thread on SIGINT and SIGTERM; a second one ends the process at once."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell does for jobs in the background
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a handler
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(number)


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every error becomes a line on stderr, a bug its traceback."""
    try:
        return _exit_code_of(command)
    except Interrupted as error:  # during the imports here too
        _say(error)
        return 128 + error.number


def _exit_code_of(command: Callable[[], object]) -> int:
    from idefics_cli.errors import IdeficsCliError, OutputError

    try:
        code = command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except IdeficsCliError as error:
        _say(error, "error: ")
        return error.exit_code
    except OSError as error:
        if error.errno not in NOT_WRITTEN or error.filename is not None:
            _print_traceback()
            return 1
        _say(f"can't write to stdout: {error.strerror}", "error: ")
        return OutputError.exit_code
    except Exception as error:
        # The exceptions of typer's parser have these attributes; which class they are depends on its version.
        if not hasattr(error, "format_message"):
            _print_traceback()
            return 1
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        words = error.format_message().rstrip(".").replace(": Value error, ", ": ")  # which some versions put in
        _say(words + hint, "error: ")
        return int(getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def exit_process(code: int) -> NoReturn:
    """End this process without waiting for threads that load weights or read a pipe.

    Results are written and closed by then: what holds any is a context manager.
    """
    from contextlib import suppress

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _say(error: object, prefix: str = "") -> None:
    from idefics_cli.cli.console import end_message

    end_message(error, prefix)
