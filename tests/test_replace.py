from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import OutputError
from idefics_cli.results.replace import drop_rows, replacing
from tests.output_rows import key, read_all, row, write_output


def test_the_old_file_stays_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as stream:
        stream.write(b"half")
        raise FileNotFoundError
    assert path.read_text() == "old"
    with replacing(path) as stream:
        stream.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.csv"]
    with pytest.raises(OutputError, match="No such file"), replacing(tmp_path / "gone" / "out.csv"):
        pass


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    (tmp_path / ".out.csv.new").write_text("left by another run, and longer")
    with replacing(path) as stream:
        stream.write(b"new")
    assert (path.read_text(), os.listdir(tmp_path)) == ("new", ["out.csv"])


def test_owner_and_mode_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
    before = path.stat()
    with replacing(path) as stream:
        stream.write(b"new")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_are_dropped_and_the_others_stay_byte_for_byte(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    write_output(path, [row(key=key(n), question=f'"{n}"\n' * n) for n in range(20)], format=Format(ending))
    before = read_all(path)
    size = drop_rows(path, lambda index, one: index % 3 == 0 or one.text("key") == key(7))
    assert size == path.stat().st_size
    assert read_all(path) == [one for n, one in enumerate(before) if n % 3 and n != 7]
    drop_rows(path, lambda *_: True)
    assert read_all(path) == []
    assert path.read_text().startswith("document,page") == (ending == "csv")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(n), answer="x" * 100) for n in range(100)])
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            drop_rows(path, lambda *_: False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.csv"]
