"""Shards answer each row once, and merged they are what one run would have written."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli import batch
from idefics_cli.config import Format, OutputSettings, QuestionSettings, RunSettings, Shard
from idefics_cli.errors import InputError, OutputError
from idefics_cli.merge import MergeResult, merge
from idefics_cli.results.lock import locked
from idefics_cli.results.read import OutputReader
from tests.conftest import Run
from tests.worker_engines import open_fake, settings

DOCUMENTS = 9


@pytest.fixture
def questions(grey_png: Callable[..., Path], tmp_path: Path) -> Path:
    """Questions to nine documents, two of which are equal, and to one that is broken; two lines are equal."""
    path = tmp_path / "questions.csv"
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    names = [grey_png(f"{number}.png", 40 + 10 * max(1, number), size=(60, 80)).name for number in range(DOCUMENTS)]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["document", "question", "mine"])
        for number, name in enumerate([*names, "broken.pdf", names[3]]):
            writer.writerows([name, f"what {one}", f"{number} {one}"] for one in range(3))
    return path


def run(questions: Path, path: Path, shard: Shard | None = None, workers: int | None = None) -> None:
    form = Format.JSONL if path.suffix == ".jsonl" else Format.CSV
    given = settings(path, workers, format=form, resume=True)
    given = dataclasses.replace(given, questions=QuestionSettings(shard=shard))
    batch.run([], str(questions), given, io.StringIO(), open_with=open_fake)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in row.values.items() if not name.endswith("_ms") and name != "answered_at"}
        for row in OutputReader(path)
    ]


def output(path: Path | None, **more: object) -> RunSettings:
    form = Format.JSONL if path is not None and path.suffix == ".jsonl" else Format.CSV
    given = settings(path, None)
    return dataclasses.replace(given, output=OutputSettings(path, form, **more))  # type: ignore[arg-type]


def merged(outputs: list[Path], path: Path, questions: Path | None = None, **more: object) -> MergeResult:
    asked = None if questions is None else str(questions)
    return merge(outputs, output(path), io.StringIO(), questions=asked, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "ending"), [(1, "csv"), (2, "jsonl"), (7, "csv")])
def test_shards_merged_are_the_run_that_was_not_sharded(
    count: int, ending: str, questions: Path, tmp_path: Path
) -> None:
    whole = tmp_path / f"whole.{ending}"
    run(questions, whole)
    parts = [tmp_path / f"part-{index}.{ending}" for index in range(1, count + 1)]
    for index, part in enumerate(parts, 1):
        run(questions, part, Shard(index, count))
        run(questions, part, Shard(index, count))  # once more: nothing is asked
    total = sum(len(rows_of(part)) for part in parts)
    assert total == len(rows_of(whole)) == 3 * (DOCUMENTS + 2)
    result = merged(parts, tmp_path / f"all.{ending}", questions, shards=count)
    assert rows_of(tmp_path / f"all.{ending}") == rows_of(whole)
    assert (result.rows, result.failed, result.missing, result.conflicts, result.not_asked) == (total, 3, 0, 0, 0)
    run(questions, tmp_path / f"all.{ending}")  # gone on with: nothing is asked
    assert rows_of(tmp_path / f"all.{ending}") == rows_of(whole)
    unordered = merged(parts, tmp_path / f"unordered.{ending}")
    assert unordered.rows == total
    in_order = [{**row, "settings": rows_of(whole)[0]["settings"]} for part in parts for row in rows_of(part)]
    assert rows_of(tmp_path / f"unordered.{ending}") == in_order
    present = [part for part in parts if rows_of(part)]
    assert len(present) == min(count, len(present))


def test_an_output_takes_the_rows_of_one_shard(questions: Path, tmp_path: Path) -> None:
    part, whole = tmp_path / "part.csv", tmp_path / "whole.csv"
    run(questions, part, Shard(1, 2))
    run(questions, whole)
    before = part.read_bytes(), whole.read_bytes()
    for workers in (None, 2):
        with pytest.raises(OutputError, match=r"part.csv: holds rows of shard 1/2, and this run is shard 2/2: .*merge"):
            run(questions, part, Shard(2, 2), workers)
        with pytest.raises(OutputError, match=r"whole.csv: holds rows of a run without --shard, .* is shard 1/2"):
            run(questions, whole, Shard(1, 2), workers)
    assert (part.read_bytes(), whole.read_bytes()) == before
    given = dataclasses.replace(settings(part, None, resume=True), questions=QuestionSettings(shard=Shard(1, 4)))
    with pytest.raises(OutputError, match="rows of shard 1/2, and this run is shard 1/4"):
        batch.dry_run([], str(questions), given, open_with=open_fake)


def test_workers_do_a_shard_too(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "one.csv", Shard(1, 2))
    run(questions, tmp_path / "two.csv", Shard(1, 2), workers=2)
    assert rows_of(tmp_path / "two.csv") == rows_of(tmp_path / "one.csv") != []


def test_a_missing_shard_and_missing_rows_are_named(questions: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part-{index}.csv" for index in (1, 2, 3)]
    for index, part in enumerate(parts, 1):
        run(questions, part, Shard(index, 3))
    lines = parts[0].read_bytes().splitlines(keepends=True)
    parts[0].write_bytes(b"".join(lines[:-1]))
    result = merged([parts[0], parts[2]], tmp_path / "all.csv", questions, shards=3)
    lost = rows_of(parts[1])
    assert result.missing == len(lost) + 1
    assert result.missing_by_shard == {1: 1, 2: len(lost)}
    assert result.rows_by_shard[2] == len(lost)
    assert result.missing_names[:20] == result.missing_names
    assert not result.is_whole
    assert result.rows == 3 * (DOCUMENTS + 2) - result.missing


def test_overlapping_outputs_give_each_row_once_and_contradictions_are_named(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    assert text.count("what 1 @70") == 2  # the document of two lines
    (tmp_path / "b.csv").write_text(text.replace("what 2 @50", "something else"))
    result = merged([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "all.csv", questions)
    assert rows_of(tmp_path / "all.csv") == rows_of(tmp_path / "a.csv")
    assert result.conflicts == text.count("what 2 @50") == len(result.conflict_names)
    assert "'what 2 @50' in " in result.conflict_names[0]
    assert "'something else' in " in result.conflict_names[0]
    assert not result.is_whole


def test_an_answered_row_stands_before_a_failed_one(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0] |= {"status": "failed", "answer": "", "error": "timed-out: too slow"}
    with (tmp_path / "b.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = merged([tmp_path / "b.csv", tmp_path / "a.csv"], tmp_path / "all.csv")
    assert rows_of(tmp_path / "all.csv") == rows_of(tmp_path / "a.csv")
    assert (result.failed, result.conflicts) == (3, 0)


def test_rows_that_no_question_asks_for_are_left_out_and_counted(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "a.csv")
    lines = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join(lines[:4]))
    result = merged([tmp_path / "a.csv"], tmp_path / "all.csv", questions)
    assert (result.rows, result.not_asked) == (3, 3 * (DOCUMENTS + 1))


def test_what_does_not_belong_together_is_refused(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "a.csv")
    run(questions, tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="merge outputs of one format"):
        merged([tmp_path / "a.csv", tmp_path / "b.jsonl"], tmp_path / "all.csv")
    with pytest.raises(OutputError, match=r"merged one \.csv"):
        merged([tmp_path / "a.csv"], tmp_path / "all.jsonl")
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "columns.csv").write_text(text.replace(",mine,", ",yours,", 1))
    with pytest.raises(InputError, match="mine, yours"):
        merged([tmp_path / "a.csv", tmp_path / "columns.csv"], tmp_path / "all.csv")
    settings_of = str(rows_of(tmp_path / "a.csv")[0]["settings"])
    (tmp_path / "settings.csv").write_text(text.replace(settings_of, settings_of.replace("1", "2")))
    with pytest.raises(InputError, match="other settings"):
        merged([tmp_path / "a.csv", tmp_path / "settings.csv"], tmp_path / "all.csv")
    (tmp_path / "changed.csv").write_text(text[:-10] + "not hex!!\n")
    with pytest.raises(InputError, match="was changed"):
        merged([tmp_path / "changed.csv"], tmp_path / "all.csv")
    assert not (tmp_path / "all.csv").exists()


def test_nothing_is_overwritten_unasked_and_inputs_never(questions: Path, tmp_path: Path) -> None:
    run(questions, tmp_path / "a.csv")
    before = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        merged([tmp_path / "a.csv"], tmp_path / "there.csv")
    merge([tmp_path / "a.csv"], output(tmp_path / "there.csv", overwrite=True), io.StringIO())
    assert (tmp_path / "there.csv").read_bytes() == before
    for given in (output(tmp_path / "a.csv"), output(tmp_path / "a.csv", overwrite=True)):
        with pytest.raises(OutputError, match="is an input"):
            merge([tmp_path / "a.csv"], given, io.StringIO())
    assert (tmp_path / "a.csv").read_bytes() == before
    stdout = io.StringIO()
    merge([tmp_path / "a.csv"], output(None), stdout)
    assert stdout.getvalue().encode() == before


def test_empty_outputs_merge_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    assert merged([tmp_path / "empty.csv"], tmp_path / "all.csv").rows == 0
    assert (tmp_path / "all.csv").read_bytes() == b""


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_row_that_is_cut_off_is_told_and_is_no_success(ending: str, questions: Path, tmp_path: Path) -> None:
    whole, cut, merged_file = (tmp_path / f"{name}.{ending}" for name in ("whole", "cut", "all"))
    run(questions, whole)
    cut.write_bytes(whole.read_bytes()[:-40])
    result = merged([cut], merged_file)
    assert rows_of(merged_file) == rows_of(whole)[:-1]
    assert f"{cut}: its last row is cut off, and left out" in result.notes[0]
    assert (result.unfinished, result.is_whole) == (1, False)
    merged_file.unlink()
    asked = merged([cut, whole], merged_file, questions)
    assert (asked.missing, asked.unfinished, len(asked.notes)) == (0, 0, 1)


def test_an_output_that_a_run_is_writing_to_is_no_success(questions: Path, tmp_path: Path) -> None:
    """Its rows so far would else replace those of yesterday."""
    run(questions, tmp_path / "part.csv")
    before = rows_of(tmp_path / "part.csv")
    with locked(tmp_path / "part.csv"):
        result = merged([tmp_path / "part.csv"], tmp_path / "all.csv")
        assert f"{tmp_path / 'part.csv'}: a run is writing to it" in result.notes[0]
        assert (result.rows, result.unfinished, result.is_whole) == (len(before), 1, False)
    (tmp_path / ".part.csv.lock").write_text("process 1")  # as a killed run leaves it
    (tmp_path / "all.csv").unlink()
    assert merged([tmp_path / "part.csv"], tmp_path / "all.csv").unfinished == 0


def test_what_is_no_file_is_said_as_what_it_is(cli: Run, tmp_path: Path) -> None:
    for path, words in ((tmp_path, "a folder: name the outputs in it"), (Path("/dev/null"), "not a regular file")):
        done = cli("merge", path, "-o", tmp_path / "all.csv")
        assert (done.returncode, f"{path}: {words}" in done.stderr) == (3, True)


def test_the_command_says_what_is_missing_and_ends_with_six(cli: Run, questions: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        run(questions, tmp_path / f"part-{index}.csv", Shard(index, 2))
    asked = ("-q", questions, "--shards", "2")
    done = cli("merge", tmp_path / "part-1.csv", "-o", tmp_path / "all.csv", *asked)
    assert done.returncode == 6
    assert "shard 2/2 is missing: none of its" in done.stderr
    assert "missing: " in done.stderr
    done = cli("merge", tmp_path / "part-1.csv", tmp_path / "part-2.csv", "-o", tmp_path / "whole.csv", *asked)
    assert done.returncode == 6  # the broken document
    assert "3 failed" in done.stderr
    assert "missing" not in done.stderr
    assert cli("merge", tmp_path / "part-1.csv", tmp_path / "no.csv", "-o", "x.csv").returncode == 3
    assert cli("merge", tmp_path / "part-1.csv", "--shards", "2").returncode == 2
