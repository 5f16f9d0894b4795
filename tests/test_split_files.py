from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.errors import OutputBusyError, OutputError
from idefics_cli.results.lock import locked
from idefics_cli.results.split_files import split_files


def write(path: Path, lines: list[bytes], most_lines: int = 10, most_bytes: int = 100) -> list[Path]:
    with split_files(path, most_lines, most_bytes) as files:
        for line in lines:
            files.write(line)
        assert not path.exists()
    return files.paths


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_fits_one_file_has_its_name(tmp_path: Path) -> None:
    assert write(tmp_path / "b.jsonl", [b"1\n", b"2\n"]) == [tmp_path / "b.jsonl"]
    assert (tmp_path / "b.jsonl").read_bytes() == b"1\n2\n"
    assert names(tmp_path) == ["b.jsonl"]


def test_a_new_file_begins_at_the_lines_and_at_the_bytes(tmp_path: Path) -> None:
    paths = write(tmp_path / "b.jsonl", [b"%d\n" % number for number in range(7)], most_lines=3)
    assert [path.name for path in paths] == ["b-00001.jsonl", "b-00002.jsonl", "b-00003.jsonl"]
    assert [path.read_bytes() for path in paths] == [b"0\n1\n2\n", b"3\n4\n5\n", b"6\n"]
    (tmp_path / "more").mkdir()
    paths = write(tmp_path / "more" / "b.jsonl", [b"x" * 39 + b"\n"] * 5)
    assert [path.stat().st_size for path in paths] == [80, 80, 40]


def test_a_line_may_fill_a_file_and_no_line_is_no_file(tmp_path: Path) -> None:
    assert len(write(tmp_path / "b.jsonl", [b"x" * 99 + b"\n"] * 2)) == 2
    (tmp_path / "none").mkdir()
    assert write(tmp_path / "none" / "b.jsonl", []) == []
    assert names(tmp_path / "none") == []


@pytest.mark.parametrize("taken", ["b.jsonl", "b-00007.jsonl"])
def test_nothing_is_written_over(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{taken}: exists"):
        write(tmp_path / "b.jsonl", [b"1\n"])
    assert (tmp_path / taken).read_bytes() == b"mine"
    assert names(tmp_path) == [taken]


def test_a_name_that_is_taken_meanwhile_stays_and_none_is_given(tmp_path: Path) -> None:
    refusal = pytest.raises(OutputError, match=r"b-00002.jsonl: exists")
    with refusal, split_files(tmp_path / "b.jsonl", 1, 100) as files:
        for _ in range(3):
            files.write(b"1\n")
        (tmp_path / "b-00002.jsonl").write_bytes(b"mine")
    assert names(tmp_path) == ["b-00002.jsonl"]
    assert (tmp_path / "b-00002.jsonl").read_bytes() == b"mine"


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), split_files(tmp_path / "b.jsonl", 1, 100) as files:
        files.write(b"1\n")
        files.write(b"2\n")
        raise RuntimeError
    assert names(tmp_path) == []


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f".b.jsonl.{number}.new").write_bytes(b"left")
    write(tmp_path / "b.jsonl", [b"1\n"])
    assert names(tmp_path) == ["b.jsonl"]


def test_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        write(tmp_path / "none" / "b.jsonl", [])
    with pytest.raises(OutputError, match="a folder"):
        write(tmp_path, [])
    with pytest.raises(OutputError, match="a stream"):
        write(Path("/dev/stdout"), [])
    with locked(tmp_path / "b.jsonl"), pytest.raises(OutputBusyError):
        write(tmp_path / "b.jsonl", [])
    (tmp_path / "in.csv").write_bytes(b"")
    with pytest.raises(OutputError, match="is an input"), split_files(tmp_path / "in.csv", 1, 1, [tmp_path / "in.csv"]):
        pass
