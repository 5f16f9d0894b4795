"""Documents that requests bring, as files for the page processes: each content once, bounded in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idefics_cli.documents.discover import from_data_uri
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document

_DATA = "data:"


@dataclass(slots=True)
class _Stored:
    document: Document
    size: int
    sources: set[bytes] = field(default_factory=set)
    """Digests of the data URIs that it came as."""
    users: int = 0


class DocumentStore:
    """Files by their content, the least recently used deleted first; thread-safe."""

    def __init__(self, most_bytes: int, folder: str | None = None) -> None:
        """Make a folder in another one, None being that of temporary files; it is deleted with this store."""
        self._folder = tempfile.mkdtemp(prefix="idefics-cli-serve-", dir=folder)
        self._delete_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, _Stored] = OrderedDict()
        self._by_source: dict[bytes, str] = {}

    def close(self) -> None:
        """Delete the files."""
        self._delete_folder()

    @contextlib.contextmanager
    def stored(self, sources: Sequence[str | memoryview]) -> Iterator[list[Document]]:
        """Yield the documents of data URIs and addresses, in their order; their files stay as long.

        Memory holds a data URI, in UTF-8.

        Raises:
            RowFailedError: one can't be read or stored; names it where there are several.

        """
        taken: list[str] = []
        documents = []
        try:
            for number, source in enumerate(sources, 1):
                if isinstance(source, str) and source[: len(_DATA)].lower() != _DATA:
                    documents.append(Document(source, url=source))
                    continue
                with naming("document", number, len(sources)):
                    digest = self._taken(source)
                taken.append(digest)
                documents.append(self._stored[digest].document)
            yield documents
        finally:
            with self._lock:
                for digest in taken:
                    self._stored[digest].users -= 1
                self._delete_unused()

    def _taken(self, source: str | memoryview) -> str:
        """Return the digest of a document, which is stored and has one more user."""
        # Many requests bring the same text: it is decoded once.
        key = hashlib.sha256(source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source).digest()
        with self._lock:
            if (known := self._by_source.get(key)) is not None:
                self._stored.move_to_end(known)
                self._stored[known].users += 1
                return known
        # Bytes that are no UTF-8 are no base64 either: that is said of them.
        uri = source if isinstance(source, str) else str(source, "utf-8", "surrogateescape")
        data = from_data_uri(uri).data or b""
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            if digest not in self._stored:
                # A name of its own each time: page processes know a file that was deleted and written anew for changed.
                self._stored[digest] = _Stored(self._written(data), len(data))
                self._bytes += len(data)
            self._stored.move_to_end(digest)
            self._stored[digest].users += 1
            self._stored[digest].sources.add(key)
            self._by_source[key] = digest
        return digest

    def _written(self, data: bytes) -> Document:
        try:
            descriptor, path = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise RowFailedError(FailureKind.UNREADABLE, f"it can't be stored: {error.strerror or error}") from error
        return Document("document", path)

    def _delete_unused(self) -> None:
        for digest in [digest for digest, stored in self._stored.items() if not stored.users]:
            if self._bytes <= self._most:
                return
            stored = self._stored.pop(digest)
            self._bytes -= stored.size
            for key in stored.sources:
                del self._by_source[key]
            with contextlib.suppress(OSError):
                Path(stored.document.path or "").unlink()


@contextlib.contextmanager
def naming(thing: str, number: int, count: int) -> Iterator[None]:
    """Let a failure say which of several things failed."""
    try:
        yield
    except RowFailedError as error:
        if count == 1:
            raise
        raise RowFailedError(error.failure.kind, f"{thing} {number}: {error.failure.detail}") from error
