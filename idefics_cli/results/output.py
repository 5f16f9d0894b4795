"""Opens the output of a run, whatever stands there: stdout, a stream, a new file, one to resume or to replace."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from idefics_cli.config import OutputSettings
from idefics_cli.records import Row
from idefics_cli.results.answered import Answered
from idefics_cli.results.check import check_inputs, is_stdout, output_file, read_state
from idefics_cli.results.lock import hold, locked
from idefics_cli.results.read import OutputReader
from idefics_cli.results.replace import drop_rows, open_unbuffered, output_errors, replacing
from idefics_cli.results.status import OutputStatus, is_to_retry
from idefics_cli.results.sync import Sink, sync_folder
from idefics_cli.results.write import RowWriter

_REMEMBERED = 10_000  # documents of rows that follow one another
_SAME_QUESTION = ("document", "question", "id")  # a document that failed has no page yet


class Output:
    """An output that takes rows."""

    def __init__(self, writer: RowWriter, earlier: OutputStatus | None = None) -> None:
        self.earlier = earlier or OutputStatus()
        """What was there already."""
        self.is_complete = False
        self.later_notes: list[str] = []
        """What is known once all rows are written."""
        self.dropped_failed = 0
        """Failed earlier rows that were dropped once all rows were written."""
        self._writer = writer

    @property
    def answered(self) -> Answered:
        """The keys of the rows that were there already."""
        return self.earlier.answered

    @property
    def notes(self) -> list[str]:
        """What to tell the user; all of it once the output is closed."""
        return self._writer.notes + self.later_notes

    @property
    def rows(self) -> int:
        """Rows written by this run."""
        return self._writer.rows

    def write(self, row: Row) -> None:
        """Write one row; it is on the disk within a second.

        Raises:
            OutputError: it can't be written; the rows before it are whole.
            BrokenPipeError: nobody reads the output any more.

        """
        self._writer.write(row)

    def complete(self) -> None:
        """Say that all questions were gone through, so that earlier rows whose keys are left answer none of them.

        Without it nothing is dropped or said of such rows: not after --limit, and not after an interruption.
        """
        self.is_complete = True


@contextlib.contextmanager
def open_output(
    settings: OutputSettings,
    columns: Sequence[str],
    stdout: IO[str],
    values: Mapping[str, str] | None = None,
    inputs: Iterable[Path] = (),
) -> Iterator[Output]:
    """Open the output, as late as possible; a new file goes again when the block fails before its first row.

    Args:
        settings: where rows go.
        columns: the user's own.
        stdout: takes the rows where no file is named.
        values: the settings that can change an answer, see `settings_values`.
        inputs: files that the run reads; they are not written to.

    Raises:
        OutputError: it can't be written, is there already, is not an output, or was answered with other settings.
        OutputBusyError: another run holds it.

    """
    path = output_file(settings)
    if settings.path is None or is_stdout(settings.path):
        with _writing(_below_buffers(stdout), settings, columns) as output:
            yield output
    elif path is None:
        with open_unbuffered(settings.path) as stream, _writing(stream, settings, columns) as output:
            yield output
    else:
        check_inputs(path, inputs)
        with locked(path, settings.wait):
            if settings.overwrite and path.exists():
                with replacing(path) as stream, _writing(stream, settings, columns) as output:
                    yield output
            else:
                with _appending(path, settings, columns, values) as output:
                    yield output


@contextlib.contextmanager
def _writing(
    sink: Sink, settings: OutputSettings, columns: Sequence[str], earlier: OutputStatus | None = None
) -> Iterator[Output]:
    header = not (earlier and earlier.end)
    name = "stdout" if settings.path is None else str(settings.path)
    writer = RowWriter(sink, settings.format, columns, header=header, excel_safe=settings.excel_safe, name=name)
    try:
        yield Output(writer, earlier)
    finally:  # a signal too: what is computed is on the disk
        writer.close()


@contextlib.contextmanager
def _appending(
    path: Path, settings: OutputSettings, columns: Sequence[str], values: Mapping[str, str] | None
) -> Iterator[Output]:
    """Go on with the rows of a file, if there is one."""
    is_new = not path.exists()
    earlier = read_state(settings, columns, values)
    is_made, output = False, None
    try:
        if earlier.to_retry:
            earlier.end = drop_rows(path, lambda _, row: is_to_retry(row, settings.retry_failed))
        with open_unbuffered(path, "xb" if is_new else "ab") as stream:
            is_made = is_new
            hold(stream.fileno())
            with output_errors(path):
                if os.fstat(stream.fileno()).st_size > earlier.end:  # a torn row; else the file's time stays
                    os.ftruncate(stream.fileno(), earlier.end)
                if is_new:
                    sync_folder(path.parent)
            with _writing(stream, settings, columns, earlier) as output:
                yield output
        if output.is_complete and output.answered.left:
            _settle(path, settings, output)
    finally:
        if is_made and not (output and (output.rows or output.is_complete)):
            path.unlink(missing_ok=True)


def _settle(path: Path, settings: OutputSettings, output: Output) -> None:
    """Drop earlier rows that answer none of the questions, or say how many they are.

    A failed row whose document or request has been mended since, so that another row stands beside it, goes with
    --retry-failed.
    """
    answered = output.answered
    _prefer_those_present(path, answered)
    numbers, failed, old, new = array("q"), bytearray(), array("q"), array("q")  # there may be millions
    for index, row in enumerate(OutputReader(path)):
        is_request = row.custom_id and row.custom_id == row.text("id")  # whose id is its own, whatever it asked
        asked = hash(row.custom_id if is_request else tuple(row.text(name) for name in _SAME_QUESTION))
        if index >= len(answered) or (is_request and answered.is_taken(index)):
            new.append(asked)
        elif not answered.is_taken(index):
            numbers.append(index)
            old.append(asked)
            failed.append(row.is_failed)
    is_prune = settings.prune and len(old) < len(answered) + len(new)  # else nothing was asked: a folder not mounted?
    is_changed = np.isin(np.array(old), np.array(new))
    is_mended = is_changed & np.array(failed, bool) if settings.retry_failed else np.zeros(len(old), bool)
    is_dropped = is_mended | is_prune
    output.dropped_failed = int((is_dropped & np.array(failed, bool)).sum())
    dropped = set(np.array(numbers)[is_dropped].tolist())
    if dropped:
        drop_rows(path, lambda index, _: index in dropped)
    if mended := int(is_mended.sum()):
        output.later_notes.append(
            f"{mended} failed row{'s' * (mended > 1)} whose document or request has changed since: asked anew"
        )
    if left := len(old) - mended:
        words = f"{left} earlier rows answer" if left > 1 else "1 earlier row answers"
        words += " no question of this run"
        if changed := int((is_changed & ~is_mended).sum()):
            words += f" ({changed} beside a new row, since the document or the request has changed)"
        what = "; --prune drops them"
        if settings.prune:
            what = (
                ": dropped"
                if is_prune
                else ", which asks nothing: --prune drops none of them; delete the output to begin anew"
            )
        output.later_notes.append(words + what)


def _prefer_those_present(path: Path, answered: Answered) -> None:
    """Of rows with an equal key, more than were asked for, keep those whose documents are still where they say."""
    is_contested, is_present = np.zeros((2, len(answered)), bool)  # there may be millions
    for rows in answered.contested():
        is_contested[rows] = True
    if not is_contested.any():
        return
    exists = functools.lru_cache(_REMEMBERED)(os.path.exists)
    for index, row in enumerate(itertools.islice(OutputReader(path), len(answered))):
        if is_contested[index]:
            is_present[index] = all(map(exists, row.text("document").split("; ")))
    for rows in answered.contested():
        answered.retake(rows, is_present[rows])


class _TextSink:
    """Hands bytes to a stream that takes text."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview, /) -> int:
        self._stream.write(bytes(data).decode())
        self._stream.flush()
        return len(data)

    def fileno(self) -> int:
        return self._stream.fileno()


def _below_buffers(stdout: IO[str]) -> Sink:
    """Return what is below the buffers of stdout, so that nothing of a failed row stays in them."""
    stdout.flush()
    raw: Sink | None = getattr(getattr(stdout, "buffer", None), "raw", None)
    return raw or _TextSink(stdout)
