from __future__ import annotations

import dataclasses
import io
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from idefics_cli.config import Format, OutputSettings, RetryFailed
from idefics_cli.errors import OutputBusyError, OutputError
from idefics_cli.results.output import open_output
from tests.output_rows import VALUES, failed, key, read_all, row, write_output

ENDINGS = ["csv", "jsonl"]


def keys(path: Path) -> list[str]:
    return [one["key"] for one in read_all(path)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_appended_to_those_that_stay(tmp_path: Path, ending: str) -> None:
    path, form = tmp_path / f"out.{ending}", Format(ending)
    assert write_output(path, [row(key=key(1))], format=form) == []
    with pytest.raises(OutputError, match="--resume goes on with it"):
        write_output(path, [row(key=key(2))], format=form)
    before = path.read_bytes()
    path.write_bytes(before + "torn 😀".encode()[:-2])
    write_output(path, [row(key=key(1)), row(key=key(2))], format=form, resume=True)
    assert path.read_bytes().startswith(before)
    assert keys(path) == [key(1), key(2)]
    with (
        pytest.raises(OutputError, match="other settings"),
        open_output(OutputSettings(path, form, resume=True), [], io.StringIO(), VALUES | {"--split": "never"}),
    ):
        pass
    write_output(path, [row(key=key(3))], format=form, overwrite=True)
    assert keys(path) == [key(3)]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_questions_have_a_row_each_also_after_resume(tmp_path: Path, ending: str) -> None:
    path, form = tmp_path / f"out.{ending}", Format(ending)
    equal = [row(key=key(7), extra={"n": number}) for number in range(3)]
    write_output(path, equal[:1], ["n"], format=form)
    write_output(path, equal, ["n"], format=form, resume=True)
    before = path.read_bytes()
    assert [str(one["n"]) for one in read_all(path)] == ["0", "1", "2"]
    write_output(path, equal, ["n"], format=form, resume=True)
    assert path.read_bytes() == before


def test_what_is_not_an_output_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    for text in ('{"question": "What?"}\n', '{"question": "What?"}', "words", '{"key": "x"}\n{"key"'):
        path.write_text(text)
        with pytest.raises(OutputError):
            write_output(path, [row()], format=Format.JSONL, resume=True)
        with (
            pytest.raises(OutputError, match="is an input"),
            open_output(OutputSettings(path, Format.JSONL, overwrite=True), [], io.StringIO(), VALUES, [path]),
        ):
            pass
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["q.jsonl"]


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    for error in (KeyboardInterrupt, OSError, RuntimeError):
        with pytest.raises(error), open_output(OutputSettings(path), [], io.StringIO(), VALUES):
            raise error
    assert os.listdir(tmp_path) == []
    with pytest.raises(RuntimeError), open_output(OutputSettings(path), [], io.StringIO(), VALUES) as output:
        output.write(row())
        raise RuntimeError
    assert keys(path) == [key(0)]


def test_a_run_that_fails_leaves_what_it_was_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(1))])
    settings = OutputSettings(path, overwrite=True)
    with pytest.raises(RuntimeError), open_output(settings, [], io.StringIO(), VALUES) as output:
        output.write(row(key=key(2)))
        raise RuntimeError
    assert keys(path) == [key(1)]
    assert os.listdir(tmp_path) == ["out.csv"]


def test_links_are_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path, link = tmp_path / "there" / "out.csv", tmp_path / "link.csv"
    link.symlink_to(path)
    write_output(link, [row(key=key(1))])  # the link leads to a file that is not there yet
    write_output(link, [row(key=key(2))], resume=True)
    assert keys(path) == [key(1), key(2)]
    path.chmod(0o640)
    write_output(link, [row(key=key(3))], overwrite=True)
    assert link.is_symlink()
    assert keys(path) == [key(3)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with open_output(OutputSettings(path, resume=True), [], io.StringIO(), VALUES), pytest.raises(OutputBusyError):
        write_output(link, [], resume=True)


def test_stdout_by_any_name(tmp_path: Path) -> None:
    for path in (None, Path("/dev/stdout"), Path("/dev/fd/1")):
        for stdout in (io.StringIO(), (tmp_path / "stdout").open("w+", encoding="utf-8", newline="")):
            with open_output(OutputSettings(path), [], stdout, VALUES) as output:
                output.write(row(answer="é"))
                assert not output.answered.take(key(0))
            stdout.seek(0)
            assert stdout.read().count("é") == 1
            stdout.close()


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    for overwrite in (False, True):
        write_output(Path("/dev/null"), [row()], overwrite=overwrite)
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))  # noqa: B023 - joined below
        reader.start()
        write_output(fifo, [row(answer="through a pipe")], overwrite=overwrite)
        reader.join(10)
        assert b"through a pipe" in read[0]
        assert stat.S_ISFIFO(fifo.stat().st_mode)
        fifo.unlink()
    with pytest.raises(OutputError, match="No space left"):
        write_output(Path("/dev/full"), [row()])


def test_process_substitution(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.output_rows import *; write_output(Path(sys.argv[1]), [row()])"
    target = tmp_path / "out.csv.gz"
    script = f'{sys.executable} -c "{code}" >(gzip > {target}); sleep 0.2; gzip -dc {target}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("document,page,")
    assert key(0) in done.stdout


def test_a_reader_that_is_gone_is_no_output_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        pytest.raises(BrokenPipeError),
        os.fdopen(writing, "w") as stdout,
        open_output(OutputSettings(None), [], stdout, VALUES) as output,
    ):
        output.write(row())


@pytest.mark.parametrize("bytes_free", [0, 40, 1000])
def test_a_full_disk_at_the_start_is_an_output_error_and_leaves_nothing(tmp_path: Path, bytes_free: int) -> None:
    """A limit on the size of files stands for the disk: room for nothing, for the lock, for lock and header."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_output(tmp_path / "out.csv", [row(answer="x" * 2000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_failed_rows_are_asked_again_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(0)), failed(1, "timed-out: page 1"), failed(2), row(key=key(3))])
    again = [row(key=key(number), answer="again") for number in range(4)]
    write_output(path, again, resume=True, retry_failed=RetryFailed.TRANSIENT)
    assert [(one["key"], one["answer"]) for one in read_all(path)] == [
        (key(0), ""), (key(2), ""), (key(3), ""), (key(1), "again"),
    ]  # fmt: skip
    write_output(path, again, resume=True, retry_failed=RetryFailed.ALL)
    assert [one["status"] for one in read_all(path)] == ["ok"] * 4


def test_rows_of_gone_questions_and_changed_documents_are_told_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    earlier = [row(key=key(n), document=f"{n}.pdf", page="1", question="q") for n in range(4)]
    write_output(path, earlier)
    changed = row(key=key(9), document="1.pdf", page="1", question="q")
    asked = [earlier[0], changed, earlier[3]]
    notes = write_output(path, asked, resume=True)
    assert notes == [
        "2 earlier rows answer no question of this run (1 beside a new row, since the document or the request has "
        "changed); --prune "
        "drops them"
    ]
    assert len(keys(path)) == 5
    with open_output(OutputSettings(path, resume=True, prune=True), [], io.StringIO(), VALUES) as output:
        output.answered.take(key(0))  # not gone through: --limit, an interruption
    assert len(keys(path)) == 5
    notes = write_output(path, [*asked, row(key=key(10))], resume=True, prune=True)
    assert notes == ["2 earlier rows answer no question of this run: dropped"]
    assert keys(path) == [key(0), key(3), key(9), key(10)]
    assert write_output(path, [*asked, row(key=key(10))], resume=True, prune=True) == []


def test_a_run_that_asks_nothing_drops_nothing(tmp_path: Path) -> None:
    """Such as over a folder that is not mounted, with --allow-empty."""
    path = tmp_path / "out.csv"
    write_output(path, [row(key=key(n)) for n in range(2)])
    assert write_output(path, [], resume=True, prune=True) == [
        "2 earlier rows answer no question of this run, which asks nothing: --prune drops none of them; delete the "
        "output to begin anew"
    ]
    assert keys(path) == [key(0), key(1)]


def test_a_failed_row_goes_once_its_document_was_mended(tmp_path: Path) -> None:
    """It stands under another key, since the document's bytes are others; it goes with --retry-failed alone."""
    path = tmp_path / "out.csv"
    broken = dataclasses.replace(failed(0, "unreadable: damaged"), document="1.pdf", page="", question="q")
    gone = dataclasses.replace(failed(1, "unreadable: damaged"), document="2.pdf", page="", question="q")
    write_output(path, [broken, gone])
    mended = [row(key=key(9), document="1.pdf", page="1", question="q")]
    notes = write_output(path, mended, resume=True)
    assert "2 earlier rows answer no question of this run (1 beside a new row" in notes[0]
    path.unlink()
    write_output(path, [broken, gone])
    notes = write_output(path, mended, resume=True, retry_failed=RetryFailed.TRANSIENT)
    assert notes == [
        "1 failed row whose document or request has changed since: asked anew",
        "1 earlier row answers no question of this run; --prune drops them",
    ]
    assert keys(path) == [key(1), key(9)]


def test_only_as_many_equal_rows_are_dropped_as_are_too_many(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(extra={"n": n}) for n in range(4)], ["n"])
    write_output(path, [row(extra={"n": n}) for n in range(3)], ["n"], resume=True, prune=True)
    assert [one["n"] for one in read_all(path)] == ["0", "1", "2"]


def test_of_equal_rows_those_stay_whose_documents_are_there(tmp_path: Path) -> None:
    """A copy whose original has gone keeps its own row, and a name that is there stands for one that is not."""
    path, there, also = tmp_path / "out.csv", tmp_path / "there.pdf", tmp_path / "also.pdf"
    names = [str(tmp_path / "gone.pdf"), str(there), f"{also}; {there}", f"{also}; {tmp_path / 'gone.pdf'}"]
    write_output(path, [row(document=name) for name in names])
    there.touch()
    also.touch()
    same = [row(document=str(there)), row(document="copy.pdf")]
    (words,) = write_output(path, same, resume=True)
    assert words == "2 earlier rows answer no question of this run; --prune drops them"
    write_output(path, same, resume=True, prune=True)
    assert [one["document"] for one in read_all(path)] == names[1:3]
    # A row more than is there: one that has another name now stays.
    there.unlink()
    write_output(path, same[:1], resume=True, prune=True)
    assert [one["document"] for one in read_all(path)] == names[1:2]


def test_renamed_columns_are_noted(tmp_path: Path) -> None:
    notes = write_output(tmp_path / "out.csv", [row(extra={"status": "x"})], ["status"])
    assert notes == ["column 'status' is 'status_input' in the output, since 'status' is one of its own"]
    write_output(tmp_path / "out.csv", [row(key=key(1), extra={"status": "y"})], ["status"], resume=True)
    assert [one["status_input"] for one in read_all(tmp_path / "out.csv")] == ["x", "y"]


def test_an_empty_run_leaves_a_header(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [])
    assert path.read_text().count("\n") == 1
    write_output(path, [row()])  # no row is there: nothing to resume
    assert keys(path) == [key(0)]


def test_an_output_to_which_nothing_is_added_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row()])
    os.utime(path, (1, 1))
    write_output(path, [row()], resume=True)
    assert path.stat().st_mtime == 1


def test_links_in_the_place_of_our_own_files_are_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "out.csv", tmp_path / "precious"
    write_output(path, [row()])
    precious.write_text("stays")
    (tmp_path / ".out.csv.new").symlink_to(precious)
    write_output(path, [row(key=key(1))], overwrite=True)
    (tmp_path / ".out.csv.lock").symlink_to(precious)
    with pytest.raises(OutputError, match="can't be locked"):
        write_output(path, [row(key=key(2))], overwrite=True)
    assert (precious.read_text(), keys(path)) == ("stays", [key(1)])


def test_failed_rows_that_are_dropped_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    rows = [dataclasses.replace(failed(n, "unreadable: damaged"), document=f"{n}.pdf") for n in range(3)]
    write_output(path, [*rows, row(key=key(8), document="8.pdf")])
    with open_output(OutputSettings(path, resume=True, prune=True), [], io.StringIO(), VALUES) as output:
        assert output.answered.take(key(0))
        output.complete()
    assert output.dropped_failed == 2
    assert keys(path) == [key(0)]
