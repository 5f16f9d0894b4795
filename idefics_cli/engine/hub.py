"""Finds a folder by its name: one on this machine, or a repository of the hub, the cache first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.errors import ModelError, first_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SNAPSHOT = re.compile(r"models--(.+?)--(.+)")
_TIMEOUT = 10.0  # seconds for the hub's first answer


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    name: str
    """A folder or a hub id."""
    revision: str | None
    kind: str
    """What it is called in messages: checkpoint, adapter ..."""
    option: str
    """Of the command line, by which it was named."""
    files: tuple[str, ...]
    """Patterns of the files that are downloaded."""
    check: Callable[[Path], object]
    """Raises ModelError where a folder lacks something: a snapshot in the cache may be incomplete."""
    hint: str = ""
    """Added where a name is neither a folder nor a hub id."""


def find_or_download(wanted: Wanted) -> Path:
    """Return the folder, downloaded into the hub's cache where it is not on this machine.

    Raises:
        ModelError: it is not here, and the hub does not have it or can't be reached.

    """
    return find_locally(wanted) or _download(wanted)


def find_locally(wanted: Wanted) -> Path | None:
    """Return the folder on this machine; None where a hub id has to be downloaded.

    Raises:
        ModelError: the name is neither a folder that is there nor a hub id.

    """
    name = wanted.name
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            next(path.iterdir(), None)
            return path
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~ of nobody
        raise ModelError(f"{name[:100]}: {getattr(error, 'strerror', None) or error}") from error
    if name.startswith((".", "~", os.sep)) or path.exists():
        raise ModelError(f"{name}: {'not a folder' if path.exists() else 'no such folder'}")
    if not is_hub_id(name):
        raise ModelError(f"{name}: neither a folder here nor a hub id (owner/name){wanted.hint}")
    return _find_in_cache(wanted)


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder on this machine, which comes before a hub id of the same name."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # `find_locally` says why
        return False


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def snapshot_names(folder: Path) -> tuple[str, str] | None:
    """Return hub id and commit of a snapshot in a hub's cache; None for any other folder."""
    folder = folder.absolute()
    match = _SNAPSHOT.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    return (f"{match[1]}/{match[2]}", folder.name) if match else None


def _find_in_cache(wanted: Wanted) -> Path | None:
    """Return the snapshot in the hub's cache, if all its files are there."""
    from huggingface_hub import snapshot_download  # not needed for a folder
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(wanted.name, revision=wanted.revision, local_files_only=True))
        wanted.check(folder)
    except (LocalEntryNotFoundError, ModelError, OSError):
        return None
    return folder


def _download(wanted: Wanted) -> Path:
    """Download a repository into the hub's cache.

    Raises:
        ModelError: the hub can't be reached, or has no such repository.

    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, revision = wanted.name, wanted.revision
    place = f"{name}{f' at revision {revision}' if revision else ''}"
    try:
        # One request with a time limit first: the library itself tries an unreachable hub for minutes.
        HfApi().model_info(name, revision=revision, timeout=_TIMEOUT)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted.files)))
    except HFValidationError as error:
        raise ModelError(f"{name}: not a hub id: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            words = f"the hub has no such {wanted.kind}, or it asks for a login (hf auth login)"
            raise ModelError(f"{place}: {words}") from error
        raise ModelError(f"{place}: the hub failed: {first_line(error)}") from error
    except Exception as error:  # the kinds of connection errors differ between versions of the library
        raise ModelError(
            f"{place}: not on this machine, and the hub can't be reached ({type(error).__name__}); download it where "
            f"there is a network (hf download {name}) and name the folder: {wanted.option} FOLDER"
        ) from error
