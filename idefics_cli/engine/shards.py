"""Writes safetensors files tensor by tensor: what they hold is planned first, so that no file has to be in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

SHARD = 5_000_000_000
"""Bytes of a file, at most, unless a single weight has more."""
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I64": 8, "F8_E4M3": 1}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that is to be written."""

    weight: str
    """What it is a part of: the parts of a weight are made together."""
    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_shards(
    folder: Path,
    planned: Sequence[Planned],
    tensors: Callable[[str], Mapping[str, Tensor]],
    progress: Callable[[int, int], None] | None = None,
    *,
    shard: int = SHARD,
) -> None:
    """Write weights to `model.safetensors`, or to several files and their index.

    Args:
        folder: that exists.
        planned: the parts of a weight one after another.
        tensors: returns the parts of a weight, by name.
        progress: called with the bytes that are written, and all.
        shard: bytes of a file, at most.

    Raises:
        OSError: a file can't be written.

    """
    files = _files(planned, shard)
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    total, done = sum(one.bytes for one in planned), 0
    for name, parts in zip(names, files, strict=True):
        for size in _write_file(folder / name, parts, tensors):
            done += size
            if progress is not None:
                progress(done, total)
    if len(files) > 1:
        weight_map = {part.name: name for name, parts in zip(names, files, strict=True) for part in parts}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(planned: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Share tensors among files; the parts of a weight stay together."""
    weights: dict[str, list[Planned]] = {}
    for part in planned:
        weights.setdefault(part.weight, []).append(part)
    files: list[list[Planned]] = [[]]
    size = 0
    for parts in weights.values():
        more = sum(part.bytes for part in parts)
        if files[-1] and size + more > limit:
            files.append([])
            size = 0
        files[-1] += parts
        size += more
    # The widest numbers first, so that each tensor begins at a multiple of its item.
    return [sorted(parts, key=lambda part: (-_ITEM_BYTES[part.dtype], part.weight)) for parts in files]


def _write_file(file: Path, parts: Sequence[Planned], tensors: Callable[[str], Mapping[str, Tensor]]) -> Iterator[int]:
    """Write a file weight by weight; yields the bytes of each."""
    of_weight: dict[str, list[Planned]] = {}
    for part in parts:
        of_weight.setdefault(part.weight, []).append(part)
    with file.open("wb") as stream:
        starts = _write_header(stream, parts)
        for weight, some in of_weight.items():
            made = tensors(weight)
            for part in some:
                stream.seek(starts[part.name])
                stream.write(_content(made[part.name], part))
            yield sum(part.bytes for part in some)
        stream.flush()
        os.fsync(stream.fileno())


def _write_header(stream: IO[bytes], parts: Sequence[Planned]) -> dict[str, int]:
    """Write the header's length in 8 bytes, and the header, filled up to 8; returns where each tensor begins."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, start = {}, 0
    for part in parts:
        header[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [start, start + part.bytes]}
        starts[part.name] = start
        start += part.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + at for name, at in starts.items()}


def _content(tensor: Tensor, part: Planned) -> memoryview:
    assert tuple(tensor.shape) == part.shape
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
