"""The union of several outputs: an index of their rows, which stay where they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from idefics_cli.config import Format
from idefics_cli.errors import InputError
from idefics_cli.results.answered import Answered
from idefics_cli.results.fingerprint import without_shard
from idefics_cli.results.read import OutputReader, StoredRow


class MergedOutputs:
    """Rows of several outputs, each once, by key; about 60 bytes a row.

    Equal keys within an output are counted: the first row with a key is the same row as the first with it in another
    output, the second as the second. Of the same rows the first that is answered stands for all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the outputs.

        Raises:
            InputError: one can't be read, is no output, or is not one of the same run as the others.

        """
        self.form: Format | None = None
        """None where all are empty."""
        self.header = b""
        """Of CSV."""
        self.cut: list[Path] = []
        """Outputs whose last row is cut off, and left out."""
        self._paths, self._descriptors = list(paths), list[int]()
        self._keys, self._offsets, self._lengths = bytearray(), array("Q"), array("I")
        self._answers, self._failed, self._starts = array("Q"), bytearray(), array("Q")
        self._columns: tuple[tuple[str, ...], Path] | None = None
        self._settings: tuple[str, Path] | None = None
        for path in self._paths:
            self._starts.append(len(self._offsets))
            self._read(path)
        halves = np.frombuffer(self._keys, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        self._chosen, self.conflicts = self._union(halves)
        """`conflicts`: pairs of rows that answer the same with other words."""
        self.answered = Answered(halves[self._chosen])
        """Keys of the rows that stand for all; a row's number is its position among them."""

    def __enter__(self) -> MergedOutputs:
        self._descriptors = [os.open(path, os.O_RDONLY) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._chosen)

    def raw(self, number: int) -> bytes:
        """Return a row as it stands in its output, but for its shard; the block of `with` must be open."""
        index = int(self._chosen[number])
        row = os.pread(self._descriptors[self._output_of(index)], self._lengths[index], self._offsets[index])
        return row if self._settings is None else _without_shard(row, self._settings[0].encode())

    def is_failed(self, number: int) -> bool:
        """Whether a row has no answer."""
        return bool(self._failed[self._chosen[number]])

    def conflict_words(self, most: int) -> Iterator[str]:
        """Say of the first few conflicts what the outputs answer."""
        for pair in self.conflicts[:most]:
            (here, first), (there, second) = ((self._paths[self._output_of(one)], self._row(one)) for one in pair)
            page = f", page {first.text('page')}" if first.text("page") else ""
            yield (
                f"{first.text('document')}{page}: {first.text('question')}: {first.text('answer')!r} in {here}, "
                f"{second.text('answer')!r} in {there}; the first was taken"
            )

    def _read(self, path: Path) -> None:
        reader = OutputReader(path)
        end = 0
        for row in reader:
            if not end:
                end = len(reader.header)
                self._check_same(path, reader)
            try:
                key = bytes.fromhex(row.text("key"))
            except ValueError as error:
                raise InputError(f"{path}: row {reader.rows} was changed: {error}") from error
            self._keys += key
            self._offsets.append(end)
            self._lengths.append(len(row.raw))
            answer = row.text("answer").encode("utf-8", "backslashreplace")
            self._answers.append(int.from_bytes(hashlib.blake2b(answer, digest_size=8).digest(), "big"))
            self._failed.append(row.is_failed)
            self._check_settings(path, row)
            end += len(row.raw)
        if reader.is_cut:
            self.cut.append(path)

    def _check_same(self, path: Path, reader: OutputReader) -> None:
        """Refuse an output of another format or with other columns; the header is that of the first."""
        if self._columns is None:
            self.form, self.header, self._columns = reader.form, reader.header, (reader.columns, path)
            return
        columns, first = self._columns
        if reader.form is not self.form:
            raise InputError(f"{path} is {reader.form}, {first} is {self.form}: merge outputs of one format")
        if reader.columns != columns:
            differing = sorted(set(reader.columns) ^ set(columns)) or ["their order"]
            raise InputError(f"{path}: its columns differ from those of {first} ({', '.join(differing)})")

    def _check_settings(self, path: Path, row: StoredRow) -> None:
        settings = without_shard(row.text("settings"))
        if self._settings is None:
            self._settings = settings, path
        elif self._settings[0] != settings:
            raise InputError(
                f"{path}: its rows were answered with other settings than those of {self._settings[1]}: merge outputs "
                "of the same model and options"
            )

    def _union(self, halves: NDArray[np.uint64]) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """Return the rows that stand for all, in the order in which the same rows first come, and the conflicts."""
        upper, lower = halves[:, 0], halves[:, 1]
        failed = np.frombuffer(self._failed, np.uint8)
        answers = np.frombuffer(self._answers, np.uint64)
        outputs = np.searchsorted(np.array(self._starts), np.arange(len(halves)), side="right")
        by_key = np.lexsort((lower, upper))  # stable: rows with a key in their order
        nth = np.empty(len(halves), np.int64)
        nth[by_key] = _position_in_group(upper[by_key], lower[by_key], outputs[by_key])
        order = np.lexsort((failed, nth, lower, upper))
        position = _position_in_group(upper[order], lower[order], nth[order])
        starts = np.flatnonzero(position == 0)
        first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        differ = (failed[order] == 0) & (answers[order] != answers[first])
        conflicts = list(zip(first[differ].tolist(), order[differ].tolist(), strict=True))
        earliest = np.minimum.reduceat(order, starts) if len(starts) else starts
        return order[starts][np.argsort(earliest)], sorted(conflicts)

    def _output_of(self, index: int) -> int:
        return int(np.searchsorted(np.array(self._starts), index, side="right")) - 1

    def _row(self, index: int) -> StoredRow:
        """Read one row again."""
        reader = OutputReader(self._paths[self._output_of(index)])
        wanted = index - self._starts[self._output_of(index)]
        with contextlib.closing(iter(reader)) as rows:  # type: ignore[type-var]
            return next(row for number, row in enumerate(rows) if number == wanted)


def _without_shard(row: bytes, settings: bytes) -> bytes:
    """Return a line of an output with these settings without the shard behind them; only the key comes after."""
    end = row.rfind(settings) + len(settings)
    return row if row[end : end + 1] != b" " else row[:end] + row[end:].lstrip(b" /0123456789")


def _position_in_group(*columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the position of each entry among its neighbours that are equal to it in all columns."""
    count = len(columns[0])
    is_new = np.ones(count, bool)
    if count:
        is_new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    indexes = np.arange(count)
    return indexes - np.maximum.accumulate(np.where(is_new, indexes, 0))
