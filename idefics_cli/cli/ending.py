"""Translates how a command ends to its exit code, at the edge and nowhere else."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from idefics_cli.cli.streams import forget_stdout
from idefics_cli.errors import INTERRUPTED, TERMINATED, IdeficsCliError


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def exit_codes(*, verbose: bool = False) -> Iterator[None]:
    """Run a command; own errors become one line on stderr and their exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        yield
    except IdeficsCliError as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:  # whoever read the rows has had enough
        forget_stdout()
        raise typer.Exit(0) from error
    except KeyboardInterrupt as error:
        print("interrupted; the rows above are whole", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
    except _Terminated as error:
        print("terminated; the rows above are whole", file=sys.stderr)
        raise typer.Exit(TERMINATED) from error


def _on_terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise _Terminated
