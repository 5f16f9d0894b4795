"""Finds documents: files, folders, globs and data URIs."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.records import Document

SUFFIXES = (".pdf", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")

_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[\w.+=-]+)*),", re.ASCII)
_NAME_LENGTH = 48
_MAGIC = re.compile(r"[*?\[]")
_EXAMPLES = 5


@dataclass(slots=True)
class PassedOver:
    """What lay in folders and was not taken: other files, links to folders, folders that may not be entered."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few, with the reason where it is not the ending."""

    def add(self, path: str, reason: str = "") -> None:
        """Count one."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{path} ({reason})" if reason else path)


def find(names: Iterable[str], passed_over: PassedOver | None = None) -> list[Document]:
    """Expand the names of a command line, each document once, in the order given.

    Raises:
        InputError: a name that matches nothing, or a folder without documents.

    """
    found: dict[str, Document] = {}
    for name in names:
        try:
            documents = expand(name, passed_over)
        except RowFailedError as error:
            raise InputError(f"{name!r}: {error.failure.detail}") from error
        for document in documents:
            found.setdefault(os.path.realpath(document.path or document.name), document)
    return list(found.values())


def expand(name: str, passed_over: PassedOver | None = None) -> list[Document]:
    """Expand one name: a file, a folder (recursive, sorted) or a glob.

    In globs `**` stands for any folders, and endings match without regard to case. Links to folders are followed only
    where a name or a single `*` leads to them.

    Args:
        name: as the user gave it.
        passed_over: counts what is not taken.

    Raises:
        InputError: nothing there, or a folder that may not be entered.
        RowFailedError: no file can have such a name.

    """
    passed_over = PassedOver() if passed_over is None else passed_over
    mode = _mode(name)
    if mode is not None and not stat.S_ISDIR(mode):
        return [Document(name, name)]
    if mode is not None:
        files = _files_in_folder(name, passed_over)
        words = f"no document in this folder (looked for {', '.join(SUFFIXES)})"
    elif _MAGIC.search(name):
        base, parts = _split_glob(name)
        files = sorted(set(_matches(base, parts, passed_over)))
        words = "no document matches this pattern"
    else:
        raise InputError(f"{name}: no such file or folder")
    if not files:
        raise InputError(f"{name}: {words}")
    return [Document(file, file) for file in files]


def is_document(name: str) -> bool:
    """Whether a file's ending is one of a document."""
    return name.lower().endswith(SUFFIXES)


def is_below(name: str, root: str | Path) -> bool:
    """Whether a name or glob can only lead to `root` or below it, as far as links before its first `*` tell.

    Nothing is listed, and the answer does not depend on which files exist; what a glob finds is to be checked again.
    """
    base, parts = _split_glob(name)
    if parts and ".." in parts:
        return False
    try:
        resolved_root = Path(os.path.realpath(root))
        return all(Path(os.path.realpath(path)).is_relative_to(resolved_root) for path in (base, name))
    except (OSError, ValueError):
        return False


def from_data_uri(uri: str) -> Document:
    """Decode a `data:` URI.

    Raises:
        RowFailedError: not a data URI, or bytes that don't decode.

    """
    match = _DATA_URI.match(uri)
    if match is None:
        raise RowFailedError(FailureKind.UNREADABLE, "a data URI must look like data:image/png;base64,...")
    body = uri[match.end() :]
    try:
        data = _from_base64(body) if "base64" in match["options"].split(";") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise RowFailedError(FailureKind.UNREADABLE, f"the data URI's base64 does not decode: {error}") from error
    return Document(short_name(uri), data=data)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:  # lines and spaces are taken, though few have any: to look for them takes as long again
        return base64.b64decode("".join(text.split()), validate=True)


def short_name(name: str) -> str:
    """Return what a document is called: of a data URI the first characters."""
    is_short = len(name) <= _NAME_LENGTH or name[:5].lower() != "data:"
    return name if is_short else name[: _NAME_LENGTH - 3] + "..."


def _mode(name: str) -> int | None:
    """Return the mode of a file or folder, None where there is none; raises as `expand` does."""
    try:
        return Path(name).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    except (OSError, ValueError) as error:  # too long, with a zero byte, not to be encoded
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RowFailedError(FailureKind.UNREADABLE, words) from error


def _files_in_folder(name: str, passed_over: PassedOver) -> list[str]:
    """Return the documents in a folder and below.

    Raises:
        InputError: the folder itself may not be entered.

    """
    try:
        os.scandir(name).close()
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    files = []
    for folder, entries in _walk(name, passed_over):
        for entry in entries:
            path = os.path.join(folder, entry.name)  # noqa: PTH118 - as the user spelled it
            if not _is_folder(entry) and is_document(entry.name):
                files.append(path)
            elif not entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                passed_over.add(path, "a link to a folder" if _is_folder(entry) else "")
    return files


def _walk(top: str, passed_over: PassedOver) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield a folder and those below it in sorted order, each with what it holds.

    Links are not followed, so that each folder is visited once.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        entries = _entries(folder, passed_over)
        yield folder, entries
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        waiting.extend(os.path.join(folder, name) for name in reversed(below))  # noqa: PTH118 - as above


def _entries(folder: str, passed_over: PassedOver) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name."""
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        passed_over.add(folder, error.strerror or str(error))
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or to where one may not look
        return False


def _split_glob(name: str) -> tuple[str, list[str]]:
    """Return the part of a name before the first component with a wildcard, and the components from there on."""
    parts = Path(name).parts
    plain = next((number for number, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return (os.path.join(*parts[:plain]) if plain else ""), list(parts[plain:])  # noqa: PTH118 - may be empty


def _matches(folder: str, parts: Sequence[str], passed_over: PassedOver) -> Iterator[str]:
    """Yield the documents below a folder whose path matches the components of a glob."""
    part, *rest = parts
    if part == "**":
        for below, _ in _walk(folder, passed_over):
            if not any(name.startswith(".") for name in Path(os.path.relpath(below or ".", folder or ".")).parts):
                yield from _matches(below, rest or ["*"], passed_over)
        return
    for entry in _entries(folder, passed_over):
        if not _is_match(entry.name, part):
            continue
        path = os.path.join(folder, entry.name)  # noqa: PTH118 - as above
        if rest and _is_folder(entry):
            yield from _matches(path, rest, passed_over)
        elif not rest and not _is_folder(entry) and is_document(entry.name):
            yield path


def _is_match(name: str, part: str) -> bool:
    if part == "..":
        return False
    if name.startswith(".") and not part.startswith("."):
        return False
    return fnmatch.fnmatchcase(_with_lower_ending(name), _with_lower_ending(part))


def _with_lower_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - a Path would drop more
    return stem + ending.lower()
