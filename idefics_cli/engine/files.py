"""Reads what lies beside weights and the headers of safetensors files; torch is not needed for either."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.errors import IdeficsCliError, ModelError, first_line

_SAMPLE = 4096  # bytes of each tensor that enter a digest


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies in its file."""

    file: Path
    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""
    size: int
    """Bytes."""


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Make a ModelError of whatever the files of a checkpoint break on: they can hold anything.

    Raises:
        ModelError: it names the checkpoint.

    """
    try:
        yield
    except IdeficsCliError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: can't be read: {type(error).__name__}: {first_line(error)}") from error


def read_json(path: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    """Read a JSON object; one that is not required and not there is empty.

    Raises:
        ModelError: it is missing or no JSON object; `name` says whose it is.

    """
    if not required and not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} can't be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{name}: {path.name} is not a JSON object")
    return values


def read_headers(file: Path, name: str) -> dict[str, TensorHeader]:
    """Read the header of a safetensors file: its length in 8 bytes, then JSON, then the tensors.

    Raises:
        ModelError: the file is damaged; `name` says whose it is.

    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length) if length < file.stat().st_size else b"")
            total = file.stat().st_size - 8 - length
        headers = {
            tensor: _header(file, tensor, entry, 8 + length, total)
            for tensor, entry in entries.items()
            if tensor != "__metadata__"
        }
        end = 0
        for tensor, header in sorted(headers.items(), key=lambda item: (item[1].start, item[1].size)):
            if header.start < end:
                raise ValueError(f"{tensor} lies where another tensor does")
            end = header.start + header.size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name}: {file.name} is damaged: {first_line(error)}") from error
    return headers


def _header(file: Path, tensor: str, entry: Mapping[str, Any], first: int, total: int) -> TensorHeader:
    """Check what a header says of a tensor; raises ValueError, KeyError or TypeError."""
    start, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or not isinstance(dtype, str):
        raise ValueError(f"the header of {tensor} is none: {str(entry)[:100]}")
    if not start <= end <= total:
        raise ValueError(f"{tensor} lies beyond the end of the file")
    return TensorHeader(file, dtype, shape, first + start, end - start)


def read_integers(header: TensorHeader, name: str) -> list[int]:
    """Read a tensor of int64 whole; meant for those of a few numbers.

    Raises:
        ModelError: its file can't be read, or has changed; `name` says whose it is.

    """
    try:
        with header.file.open("rb") as stream:
            stream.seek(header.start)
            data = stream.read(header.size)
        return [number for (number,) in struct.iter_unpack("<q", data)]
    except (OSError, struct.error) as error:
        raise ModelError(f"{name}: {header.file.name} is damaged: {first_line(error)}") from error


def digest_of(settings: object, files: Mapping[Path, Mapping[str, TensorHeader]], *whole: Path) -> str:
    """Return a digest of content: settings and the files of `whole` entirely, weights by samples.

    Of each tensor its header and its start are taken: new weights under an old path are noticed in milliseconds, since
    training changes every tensor.

    Args:
        settings: what can be written as JSON.
        files: the headers of safetensors files.
        whole: files that are read entirely.

    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for file in whole:
        digest.update(file.read_bytes())
    for file, headers in files.items():
        with file.open("rb") as stream:
            for name, header in sorted(headers.items()):
                digest.update(f"{name} {header.dtype} {header.shape}".encode())
                stream.seek(header.start)
                digest.update(stream.read(min(_SAMPLE, header.size)))
    return digest.hexdigest()
