"""Joins the outputs of shards: each row once, in the order of the questions, and says what is missing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import IO

from idefics_cli.asked import asked_rows
from idefics_cli.config import Format, OutputSettings, RunSettings
from idefics_cli.config.shard import shard_of
from idefics_cli.errors import OutputError
from idefics_cli.inputs import Inputs, read_inputs
from idefics_cli.results.check import check_inputs, is_stdout, output_file
from idefics_cli.results.lock import is_held, locked
from idefics_cli.results.merged import MergedOutputs
from idefics_cli.results.read import OutputReader
from idefics_cli.results.replace import open_unbuffered, replacing

_BUFFER = 1 << 20
SHOWN = 20
"""Missing rows and conflicts that are named."""


@dataclass(slots=True)
class MergeResult:
    """What a merge has found."""

    rows: int = 0
    failed: int = 0
    missing: int = 0
    """Rows of the questions that no output has."""
    missing_names: list[str] = field(default_factory=list)
    """The first few."""
    missing_by_shard: Counter[int] = field(default_factory=Counter)
    """Where the number of shards is given."""
    rows_by_shard: Counter[int] = field(default_factory=Counter)
    """Rows that the questions ask for, likewise."""
    not_asked: int = 0
    """Rows of the outputs that answer none of the questions: left out."""
    conflicts: int = 0
    """Rows that two outputs answer differently; the first is taken."""
    conflict_names: list[str] = field(default_factory=list)
    """The first few."""
    unfinished: int = 0
    """Outputs that a run writes to or that end with a part of a row, where no questions say what is missing."""
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether all is there, answered, and without a contradiction."""
        return not (self.failed or self.missing or self.conflicts or self.unfinished)


def form_of(outputs: Sequence[Path]) -> Format:
    """Return the format of the first output that holds anything; CSV where none does."""
    for path in outputs:
        reader = OutputReader(path)
        next(iter(reader), None)
        if reader.form is not None:
            return reader.form
    return Format.CSV


def merge(
    outputs: Sequence[Path],
    settings: RunSettings,
    stdout: IO[str],
    *,
    documents: Sequence[str] = (),
    questions: str | Sequence[str] | None = None,
    shards: int | None = None,
) -> MergeResult:
    """Write the rows of several outputs, each once: in the order of the questions, or without those in their own.

    Args:
        outputs: of runs with the same settings, such as those of shards.
        settings: where rows go, and how questions and pages are chosen.
        stdout: takes the rows where no file is named.
        documents: of the run.
        questions: of the run; None leaves the order to the outputs.
        shards: how many there are, to say which of them lack rows.

    Raises:
        InputError: an output can't be read, or is not one of the same run; or as `read_inputs`.
        OutputError: the rows can't be written.

    """
    result, held = MergeResult(), [path for path in outputs if is_held(path.resolve())]
    merged = MergedOutputs(outputs)
    result.notes += [f"{path}: a run is writing to it, and its next rows are not here" for path in held]
    inputs = None if questions is None else read_inputs(documents, questions, settings)
    result.conflicts, result.conflict_names = len(merged.conflicts), list(merged.conflict_words(SHOWN))
    cut = [path for path in merged.cut if path not in held]
    result.notes += [f"{path}: its last row is cut off, and left out: its run was killed; --resume it" for path in cut]
    read = [*outputs, *(inputs.paths if inputs else [])]
    if merged.form is not None and settings.output.format is not merged.form:
        ending = "csv" if merged.form is Format.CSV else "jsonl"
        raise OutputError(
            f"the outputs are {merged.form}, and are not written as {settings.output.format}: name the "
            f"merged one .{ending}"
        )
    with merged, _writing(settings.output, stdout, read) as write:
        write(merged.header)

        def put(number: int) -> None:
            write(merged.raw(number))
            result.rows += 1
            result.failed += merged.is_failed(number)

        if inputs is None:
            result.unfinished = len(held) + len(cut)
            for number in range(len(merged)):
                put(number)
        else:
            result.notes += inputs.notes
            _in_order(inputs, settings, merged, put, result, shards)
            result.not_asked = merged.answered.left
    return result


def _in_order(
    inputs: Inputs,
    settings: RunSettings,
    merged: MergedOutputs,
    put: Callable[[int], None],
    result: MergeResult,
    shards: int | None,
) -> None:
    """Go through the rows that the questions ask for; put those that are there, and note those that are not."""
    for row in asked_rows(inputs, settings):
        number = merged.answered.take_row(row.key)
        shard = shard_of(row.digest, shards) if shards else 0
        result.rows_by_shard[shard] += 1
        if number is not None:
            put(number)
            continue
        result.missing += 1
        result.missing_by_shard[shard] += 1
        if len(result.missing_names) < SHOWN:
            result.missing_names.append(row.words)


@contextlib.contextmanager
def _writing(settings: OutputSettings, stdout: IO[str], inputs: Sequence[Path]) -> Iterator[Callable[[bytes], None]]:
    """Open where rows go, a file whole or not at all; yields what takes their bytes."""
    path = output_file(settings)
    if settings.path is None or is_stdout(settings.path):
        yield lambda data: print(data.decode(), end="", file=stdout)
        return
    if path is None:
        with open_unbuffered(settings.path) as stream, _buffered(stream, settings.path) as write:
            yield write
        return
    if not path.parent.is_dir():
        raise OutputError(f"{settings.path}: no such folder")
    check_inputs(path, inputs)
    with locked(path, settings.wait):
        if path.exists() and path.stat().st_size and not settings.overwrite:
            raise OutputError(f"{settings.path}: exists; --overwrite replaces it")
        with replacing(path) as stream, _buffered(stream, settings.path) as write:
            yield write


@contextlib.contextmanager
def _buffered(stream: FileIO, path: Path) -> Iterator[Callable[[bytes], None]]:
    waiting = bytearray()

    def flush(most: int) -> None:
        while len(waiting) > most:
            try:
                del waiting[: stream.write(waiting)]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"can't write {path}: {error.strerror}") from error

    def write(data: bytes) -> None:
        waiting.extend(data)
        flush(_BUFFER)

    yield write
    flush(0)
