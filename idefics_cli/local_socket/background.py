"""Starts a server in the background, which ends when nothing was asked for some time."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from idefics_cli.config import Duration, GenerationSettings, PageSettings, RunSettings, option_of
from idefics_cli.errors import UsageError
from idefics_cli.local_socket.client import ServerConnection, find_server
from idefics_cli.local_socket.folder import make_folder, path_of

_LOG = "serve.log"
_LOCK = "start.lock"
_START_SECONDS = 120.0  # until it takes connections, which it does before its weights are loaded
_POLL_SECONDS = 0.02
_BY_REQUEST = frozenset(field.name for field in dataclasses.fields(GenerationSettings))
_NOT_OF_PAGES = frozenset(field.name for field in dataclasses.fields(PageSettings)) - {"workers"}


def find_or_start(settings: RunSettings, keep: Duration, say: Callable[[str], None]) -> ServerConnection | None:
    """Return a connection to a server that answers as this process would, started if need be; None if that fails.

    Args:
        settings: of the run.
        keep: how long it is to be kept when nothing is asked.
        say: told what is done.

    """
    try:
        folder = make_folder()
    except UsageError as error:
        say(str(error))
        return None
    with _one_at_a_time(folder):
        return find_server(settings, say) or _started(settings, keep, folder, say)


def serve_arguments(settings: RunSettings, keep: Duration) -> list[str]:
    """Return the arguments of `serve` for a server that answers as this process would."""
    arguments = ["serve", "--socket", "--keep-alive", str(keep), "--exit-when-idle"]
    for record, left_out in ((settings.model, _BY_REQUEST), (settings.pages, _NOT_OF_PAGES)):
        hints = typing.get_type_hints(type(record), include_extras=True)
        for field in dataclasses.fields(record):
            option, value = option_of(hints[field.name]), getattr(record, field.name)
            if option is None or field.name in left_out or (value == field.default and not option.variable):
                continue
            arguments.append(f"{option.flags(field.name)[0]}={value}")
    return arguments


def _started(
    settings: RunSettings, keep: Duration, folder: Path, say: Callable[[str], None]
) -> ServerConnection | None:
    log = folder / _LOG
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - this program
            [sys.executable, "-P", "-m", "idefics_cli", *serve_arguments(settings, keep)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    say(f"a server is started in the background, process {process.pid}; its log is {log}")
    path = path_of(folder, process.pid)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            return find_server(settings, say, [path])
        time.sleep(_POLL_SECONDS)
    say(f"the server could not be started; its log says why: {log}")
    return None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep two commands from starting a server each."""
    with (folder / _LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
