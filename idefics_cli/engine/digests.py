"""What marks a folder that `prepare` has written: a file with the digest of every other one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from idefics_cli.engine.files import read_json
from idefics_cli.errors import ModelError

MARK = "prepared.json"
_DIGESTS = "sha256"


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` has written a folder."""
    return (folder / MARK).is_file()


def write_mark(folder: Path, origin: Mapping[str, object]) -> None:
    """Write the digests of a folder's files, and where they come from."""
    digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    (folder / MARK).write_text(json.dumps({**origin, _DIGESTS: digests}, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> int:
    """Compare the files of a prepared folder with their digests; returns how many there are.

    Raises:
        ModelError: a file is missing, or is not as it was written.

    """
    digests = read_json(folder / MARK, str(folder)).get(_DIGESTS)
    if not isinstance(digests, dict) or not digests:
        raise ModelError(f"{folder}: {MARK} has no digests; prepare it anew with --overwrite")
    for name, digest in digests.items():
        file = folder / Path(name).name
        if not file.is_file() or _digest(file) != digest:
            words = "is not as it was written" if file.is_file() else "is missing"
            raise ModelError(f"{folder}: {name} {words}; prepare it anew with --overwrite")
    return len(digests)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
