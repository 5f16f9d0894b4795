"""Finds documents: files, folders, globs and data URIs."""

from __future__ import annotations

import base64
import binascii
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.records import Document

PDF_SUFFIXES = (".pdf",)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
SUFFIXES = PDF_SUFFIXES + IMAGE_SUFFIXES

_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[\w.+=-]+)*),", re.ASCII)
_NAME_LENGTH = 48


def find(names: Iterable[str]) -> list[Document]:
    """Expand the names of a command line, each document once, in the order given.

    Raises:
        InputError: a name that matches nothing, or a folder without documents.

    """
    found: dict[str, Document] = {}
    for name in names:
        for document in expand(name):
            found.setdefault(os.path.realpath(document.path or document.name), document)
    return list(found.values())


def expand(name: str) -> list[Document]:
    """Expand one name: a file, a folder (recursive, sorted) or a glob.

    Raises:
        InputError: nothing there.

    """
    path = Path(name)
    if path.is_dir():
        documents = [Document(str(file), str(file)) for file in _files_below(path)]
        if not documents:
            raise InputError(f"{name}: no document in this folder (looked for {', '.join(SUFFIXES)})")
        return documents
    if path.exists():
        return [Document(name, name)]
    if glob.has_magic(name):
        matches = sorted(match for match in glob.glob(name, recursive=True) if is_document(Path(match)))  # noqa: PTH207 - absolute patterns too
        if matches:
            return [Document(match, match) for match in matches]
        raise InputError(f"{name}: no document matches this pattern")
    raise InputError(f"{name}: no such file or folder")


def is_document(path: Path) -> bool:
    """Whether a file's ending is one of a document."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / file for file in sorted(files) if is_document(Path(parent) / file))


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
        data = (
            base64.b64decode(re.sub(r"\s", "", body), validate=True)
            if "base64" in match["options"].split(";")
            else unquote_to_bytes(body)
        )
    except (binascii.Error, ValueError) as error:
        raise RowFailedError(FailureKind.UNREADABLE, f"the data URI's base64 does not decode: {error}") from error
    return Document(uri if len(uri) <= _NAME_LENGTH else uri[: _NAME_LENGTH - 3] + "...", data=data)
