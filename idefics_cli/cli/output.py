"""Opens the output of `run`, whatever stands there."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from idefics_cli.config import Format, OutputSettings
from idefics_cli.errors import OutputError
from idefics_cli.results.lock import locked
from idefics_cli.results.resume import Journal, read_journal
from idefics_cli.results.write import RowWriter, output_columns, replacing
from idefics_cli.rows import differing_settings, settings_mark

_NOTHING = Journal("", frozenset())


@contextlib.contextmanager
def opened_output(
    settings: OutputSettings, columns: Sequence[str], stdout: IO[str], answered_with: Callable[[], Mapping[str, str]]
) -> Iterator[tuple[RowWriter, Journal]]:
    """Open the output: stdout, a new file, one to be gone on with, or one to be replaced at the end.

    Args:
        settings: where rows go.
        columns: the user's own.
        stdout: takes the rows where no file is named.
        answered_with: the settings that can change an answer; asked for when rows are there already.

    Raises:
        OutputError: it can't be written, is there already, or was answered otherwise.
        OutputBusyError: another run holds it.

    """
    path = settings.path
    writing = functools.partial(RowWriter, form=settings.format, extra=columns, excel_safe=settings.excel_safe)
    if path is None:
        yield writing(stdout), _NOTHING
        return
    if path.is_dir():
        raise OutputError(f"{path}: a folder; name a file")
    with locked(path, settings.wait):
        if path.exists() and not (settings.resume or settings.overwrite):
            raise OutputError(f"{path}: exists; --resume goes on with it, --overwrite replaces it")
        if settings.overwrite:
            with replacing(path) as stream:
                yield writing(stream), _NOTHING
            return
        journal = journal_of(settings, columns)
        if path.exists():
            if journal.keys:
                _check_settings(path, journal, answered_with())
            _cut_to(path, journal)
        try:
            stream = path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        with stream:
            yield writing(stream, header=not journal.kept), journal


def journal_of(settings: OutputSettings, columns: Sequence[str]) -> Journal:
    """Read what --resume goes on with; the output is left as it is.

    Raises:
        OutputError: its columns are not those of this run.

    """
    path = settings.path
    if path is None or not settings.resume or not path.exists():
        return _NOTHING
    return read_journal(path, settings.format, output_columns(columns), retry_failed=settings.retry_failed)


def _cut_to(path: Path, journal: Journal) -> None:
    """Leave in an output what is to stay: cut a torn row off its end, or rewrite it without rows that go."""
    try:
        if journal.stays is not None:
            os.truncate(path, journal.stays)
            return
        with replacing(path) as stream:
            stream.write(journal.kept)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


def _check_settings(path: Path, journal: Journal, answered_with: Mapping[str, str]) -> None:
    """Refuse to go on with rows that were answered otherwise."""
    length = len(settings_mark(answered_with))
    marks = {key[:length] for key in journal.keys}  # seldom more than one
    differing = {name for mark in marks for name in differing_settings(mark, answered_with)}
    if differing:
        names = ", ".join(name for name in answered_with if name in differing)
        raise OutputError(f"{path}: its rows were answered with other settings ({names}); use those, or --overwrite")


def format_of(path: Path | None) -> Format:
    """Return the format that the output's ending names; CSV where it names none."""
    return Format.JSONL if path and path.suffix.lower() in (".jsonl", ".ndjson") else Format.CSV
