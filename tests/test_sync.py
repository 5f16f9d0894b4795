from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.results.replace import open_unbuffered
from idefics_cli.results.sync import Syncer, sync_folder
from idefics_cli.results.write import RowWriter
from tests.output_rows import row


class Watched(io.FileIO):
    """A file that counts how often its descriptor is asked for, which a sync does."""

    asked = 0

    def fileno(self) -> int:
        self.asked += 1
        return super().fileno()


def test_a_row_is_synced_within_a_second_though_no_other_comes(tmp_path: Path) -> None:
    with Watched(tmp_path / "out", "wb") as stream:
        syncer = Syncer(stream)
        syncer.written()
        before, started = stream.asked, time.monotonic()
        while stream.asked == before:
            assert time.monotonic() - started < 3
            time.sleep(0.02)
        assert time.monotonic() - started > 0.5
        syncer.close()


def test_a_sync_that_fails_in_the_background_is_raised_at_the_next_row_and_at_the_end(tmp_path: Path) -> None:
    stream = open_unbuffered(tmp_path / "out.csv")
    writer = RowWriter(stream, Format.CSV, [])
    writer.write(row())
    os.close(stream.fileno())  # a descriptor that is none any more: the sync is refused, as by a broken disk
    time.sleep(1.3)
    with pytest.raises(OutputError, match="can't sync the output: Bad file descriptor"):
        writer.write(row())
    with pytest.raises(OutputError, match="can't sync the output"):
        writer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.close()


def test_streams_and_devices_have_nothing_to_sync(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with io.FileIO(reading), io.FileIO(writing, "wb") as pipe, open_unbuffered(Path("/dev/null")) as null:
        for stream in (pipe, null):
            syncer = Syncer(stream)
            syncer.written()
            syncer.sync()
            syncer.close()
    sync_folder(tmp_path)
    sync_folder(Path("/proc"))


def test_a_file_that_was_closed_has_nothing_left_to_sync(tmp_path: Path) -> None:
    with open_unbuffered(tmp_path / "out") as stream:
        syncer = Syncer(stream)
        syncer.written()
    syncer.close()
