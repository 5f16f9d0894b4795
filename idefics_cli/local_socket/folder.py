"""Where the sockets of servers lie, and whether one may be trusted: objects are unpickled from it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from idefics_cli.errors import UsageError

_ENDING = ".sock"
_CONNECT_SECONDS = 2.0
_CREDENTIALS = struct.Struct("3i")  # process, user and group


def socket_folder() -> Path:
    """Return the folder of this user's sockets; it may not be there.

    That of the session, XDG_RUNTIME_DIR, or one of the user's own among temporary files.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_own(Path(runtime)):
        return Path(runtime) / "idefics-cli"
    return Path(tempfile.gettempdir()) / f"idefics-cli-{os.getuid()}"


def make_folder() -> Path:
    """Return the folder, made if need be.

    Raises:
        UsageError: it is not there, or others may write to it.

    """
    folder = socket_folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of yours") from error
    if not _is_own(folder):
        raise UsageError(f"{folder}: not a folder that only you can use; remove it, or set XDG_RUNTIME_DIR")
    return folder


def sockets() -> list[Path]:
    """Return the sockets that servers of this user listen on, or have listened on; the newest first."""
    folder = socket_folder()
    if not _is_own(folder):
        return []
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{_ENDING}"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                is_private = status.st_uid == os.getuid() and not status.st_mode & 0o077
                if stat.S_ISSOCK(status.st_mode) and is_private:
                    found.append((status.st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def listen(process: int) -> tuple[socket.socket, Path]:
    """Listen on the socket of a server, named by its process.

    Raises:
        UsageError: it can't be made.

    """
    path = path_of(make_folder(), process)
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)  # of a process that had this number before
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:  # a path of more than 107 characters too
        listener.close()
        raise UsageError(f"{path}: {error.strerror or error}; set XDG_RUNTIME_DIR to a folder of yours") from error
    return listener, path


def path_of(folder: Path, process: int) -> Path:
    """Return the path of a server's socket."""
    return folder / f"{process}{_ENDING}"


def connect(path: Path) -> Connection | None:
    """Connect to a server; None where there is none, whose socket is then removed."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        client.settimeout(None)
        return connection_of(client)


def connection_of(stream: socket.socket) -> Connection | None:
    """Take a connected socket over; None where the process at its other end is another user's."""
    if sys.platform == "linux":
        credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
            stream.close()
            return None
    return Connection(stream.detach())


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody else can enter it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
