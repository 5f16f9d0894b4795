"""Whether an output can be what the settings say: looked at before anything is written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from idefics_cli.config import Format, OutputSettings
from idefics_cli.errors import InputError, OutputError, UsageError
from idefics_cli.results.fingerprint import differing_settings, other_shards
from idefics_cli.results.lines import csv_header
from idefics_cli.results.lock import locked
from idefics_cli.results.read import OutputReader
from idefics_cli.results.status import OutputStatus, read_status

_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_OTHER_FORMATS = (".json", ".tsv", ".tab", ".xlsx", ".xls", ".ods", ".parquet", ".gz", ".zip", ".bz2", ".xz", ".zst")


def format_of(path: Path | None) -> Format:
    """Return the format that the output's name asks for: JSONL for .jsonl and .ndjson, else CSV.

    Raises:
        UsageError: it names a format that is not written.

    """
    ending = path.suffix.lower() if path else ""
    if ending in _OTHER_FORMATS:
        raise UsageError(
            f"{path}: rows are written as CSV or JSONL, not as {ending}: name it .csv or .jsonl (--format csv or jsonl "
            "writes that under any name)"
        )
    return Format.JSONL if ending in (".jsonl", ".ndjson") else Format.CSV


def is_stdout(path: Path | None) -> bool:
    """Whether rows go to stdout, by whatever name."""
    return path is None or str(path) in _STDOUT


def output_file(settings: OutputSettings) -> Path | None:
    """Return the regular file that is, or is to be, the output, links resolved; None of stdout and of a stream.

    Raises:
        OutputError: it is a folder, or a stream that is to be resumed.

    """
    path = settings.path
    if path is None:
        return None
    try:
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        resolved = Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: a folder; name a file")
    if resolved.is_symlink():
        raise OutputError(f"{path}: a link that leads to itself; name a file")
    if stat.S_ISREG(mode) and not is_stdout(path):
        return resolved
    if settings.resume:
        raise OutputError(f"{path}: a stream, which can't be resumed; name a file")
    return None


def check_output(
    settings: OutputSettings, columns: Sequence[str], values: Mapping[str, str] | None, inputs: Iterable[Path] = ()
) -> None:
    """Refuse early what `open_output` would refuse, as far as the first row tells; waits for a run that holds it.

    Nothing is changed; the output's lock is taken for a moment, which shows that its folder can be written to.

    Args:
        settings: where rows go.
        columns: the user's own.
        values: see `settings_values`; None leaves the settings of earlier rows unchecked.
        inputs: files that the run reads.

    Raises:
        OutputError: the output can't be what the settings say.
        OutputBusyError: another run holds it.

    """
    path = output_file(settings)
    if path is None:
        return
    if not path.parent.is_dir():
        raise OutputError(f"{settings.path}: no such folder")
    check_inputs(path, inputs)
    with locked(path, settings.wait):
        if settings.overwrite or not path.exists():
            return
        reader = OutputReader(path)
        with _refusals():
            row = next(iter(reader), None)
    status = OutputStatus(reader.form, reader.columns, rows=reader.rows)
    if row is not None:
        status.fingerprints[row.text("settings")] += 1
    _check_earlier(settings, status, columns, values)


def read_state(settings: OutputSettings, columns: Sequence[str], values: Mapping[str, str] | None) -> OutputStatus:
    """Read what the output holds that a run goes on with, locked or not; nothing is changed.

    Raises:
        OutputError: as `open_output`.

    """
    path = output_file(settings)
    if path is None or settings.overwrite or not path.exists():
        return OutputStatus()
    with _refusals():
        status = read_status(path, settings.retry_failed)
    _check_earlier(settings, status, columns, values)
    return status


def check_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write to what the run reads.

    Raises:
        OutputError: the output is one of the inputs.

    """
    if not path.exists():
        return
    here = path.stat()
    for name in inputs:
        with contextlib.suppress(OSError, ValueError):  # it is refused where it is read
            if os.path.samestat(Path(name).stat(), here):
                raise OutputError(f"{path}: is an input of this run ({name}); name another output")


def _check_earlier(
    settings: OutputSettings, earlier: OutputStatus, columns: Sequence[str], values: Mapping[str, str] | None
) -> None:
    """Refuse to go on with an output of another format, other columns or other settings."""
    path = settings.path
    if earlier.rows and not settings.resume:
        raise OutputError(f"{path}: exists; --resume goes on with it, --overwrite replaces it")
    if earlier.form is not None and earlier.form is not settings.format:
        raise OutputError(
            f"{path}: holds {earlier.form}, not {settings.format}; go on with --format {earlier.form}, or name another"
        )
    header = csv_header(columns, excel_safe=settings.excel_safe)
    if earlier.columns and list(earlier.columns) != header:
        differing = sorted(set(earlier.columns) ^ set(header)) or ["their order"]
        raise OutputError(
            f"{path}: its columns differ from this run's ({', '.join(differing)}); use --overwrite or another output"
        )
    if values is not None:
        if others := other_shards(earlier.fingerprints, values):
            of = ", ".join(f"shard {shard}" if shard else "a run without --shard" for shard in others)
            raise OutputError(
                f"{path}: holds rows of {of}, and this run is shard {values['--shard']}: give each shard an output of "
                "its own, which merge joins; a merged output is gone on with without --shard"
            )
        differ = {name for fingerprint in earlier.fingerprints for name in differing_settings(fingerprint, values)}
        if differ:
            names = ", ".join([*(name for name in values if name in differ), *sorted(differ - values.keys())])
            raise OutputError(
                f"{path}: its rows were answered with other settings ({names}); use those, or --overwrite"
            )


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise OutputError(f"{error}; it stays as it is: name another output, or --overwrite replaces it") from error
