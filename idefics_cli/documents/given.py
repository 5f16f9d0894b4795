"""The documents of a command line: files, folders, globs, addresses and stdin."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from idefics_cli.config import QuestionSettings
from idefics_cli.documents import discover
from idefics_cli.errors import InputError
from idefics_cli.records import Document

STDIN = "-"
STDIN_NAME = "<stdin>"
_BUFFER = 64 * 1024


def open_descriptor(descriptor: int) -> IO[bytes]:
    """Return a file object of its own: at exit Python flushes sys.stdin, which a thread that still reads holds."""
    return os.fdopen(descriptor, "rb", buffering=_BUFFER)


def find_given(names: Sequence[str], settings: QuestionSettings) -> tuple[list[Document], list[str]]:
    """Return the documents of the command line, each once, and a note on files that are no documents.

    Raises:
        InputError: one of the names leads to none.

    """
    found: dict[str, Document] = {}
    passed_over = discover.PassedOver()
    for name in names:
        try:
            documents = _named(name, settings, passed_over)
        except InputError:
            if settings.allow_empty and _holds_nothing(name):
                continue
            raise
        for document in documents:
            found.setdefault(os.path.realpath(document.path) if document.path else document.name, document)
    if not passed_over.count:
        return list(found.values()), []
    files = "1 file" if passed_over.count == 1 else f"{passed_over.count:,} files"
    return list(found.values()), [f"{files} passed over, for example {', '.join(passed_over.examples)}"]


def _named(name: str, settings: QuestionSettings, passed_over: discover.PassedOver) -> list[Document]:
    if name == STDIN:
        with open_descriptor(os.dup(0)) as stdin:
            return [Document(STDIN_NAME, data=stdin.read())]
    if name[:8].lower().startswith(("http://", "https://")):
        if not settings.allow_urls:
            raise InputError(f"{name}: addresses are fetched only with --allow-urls")
        return [Document(name, url=name)]
    return discover.find([name], passed_over)


def _holds_nothing(name: str) -> bool:
    """Whether a name is that of a folder that is there, or a glob."""
    return Path(name).is_dir() or (glob.has_magic(name) and not Path(name).exists())
