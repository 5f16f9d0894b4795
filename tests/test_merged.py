"""The union of outputs, without the command around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import InputError
from idefics_cli.records import Row
from idefics_cli.results.merged import MergedOutputs
from idefics_cli.results.write import RowWriter
from tests.output_rows import row


def written(path: Path, rows: Sequence[Row], form: Format = Format.CSV, columns: Sequence[str] = ()) -> Path:
    with path.open("wb", buffering=0) as stream:
        writer = RowWriter(stream, form, columns)
        for one in rows:
            writer.write(one)
        writer.close()
    return path


def answer(key: int, text: str = "a", **more: object) -> Row:
    return row(key=f"{key:032x}", answer=text, **more)


def failure(key: int) -> Row:
    return row(key=f"{key:032x}", answer="", confidence=None, status="failed", error="unreadable: x")


@pytest.mark.parametrize("form", list(Format))
def test_each_row_stands_once_as_it_was_written_in_the_order_of_its_first(form: Format, tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"0.{form}", [answer(3), answer(1, "line\nbreak")], form),
        written(tmp_path / f"1.{form}", [answer(2), answer(3)], form),
    ]
    with MergedOutputs(paths) as merged:
        assert merged.form is form
        lines = b"".join(merged.raw(number) for number in range(len(merged)))
    expected = written(tmp_path / f"all.{form}", [answer(3), answer(1, "line\nbreak"), answer(2)], form)
    assert merged.header + lines == expected.read_bytes()
    assert merged.conflicts == []


def test_equal_keys_within_an_output_are_counted(tmp_path: Path) -> None:
    twice, once = [answer(5), answer(5)], [answer(5)]
    merged = MergedOutputs([written(tmp_path / "a.csv", twice), written(tmp_path / "b.csv", once)])
    assert len(merged) == 2
    assert merged.answered.take(f"{5:032x}")
    assert merged.answered.take(f"{5:032x}")
    assert not merged.answered.take(f"{5:032x}")


def test_an_answer_stands_before_a_failure_wherever_it_is(tmp_path: Path) -> None:
    merged = MergedOutputs(
        [written(tmp_path / "a.csv", [failure(1), failure(2)]), written(tmp_path / "b.csv", [answer(1), failure(2)])]
    )
    with merged:
        raw = [merged.raw(number) for number in range(2)]
    assert [merged.is_failed(number) for number in range(2)] == [False, True]
    assert b",ok," in raw[0]


def test_answers_that_differ_are_conflicts_and_the_first_is_taken(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "a.csv", [answer(1, "yes"), answer(2, "same")]),
        written(tmp_path / "b.csv", [answer(1, "no"), answer(2, "same")]),
    ]
    merged = MergedOutputs(paths)
    assert merged.conflicts == [(0, 2)]
    (words,) = merged.conflict_words(5)
    assert f"'yes' in {paths[0]}, 'no' in {paths[1]}" in words
    assert list(merged.conflict_words(0)) == []
    with merged:
        assert b"yes" in merged.raw(0)


def test_empty_outputs_have_nothing(tmp_path: Path) -> None:
    merged = MergedOutputs([written(tmp_path / "a.csv", []), written(tmp_path / "b.csv", [])])
    assert (len(merged), merged.form, merged.conflicts) == (0, None, [])


def test_what_is_not_of_one_run_is_refused_by_name(tmp_path: Path) -> None:
    first = written(tmp_path / "a.csv", [answer(1)])
    for other, words in (
        (written(tmp_path / "b.jsonl", [answer(2)], Format.JSONL), "outputs of one format"),
        (written(tmp_path / "c.csv", [answer(2, settings="other")]), "other settings"),
        (written(tmp_path / "d.csv", [answer(2, extra={"mine": 1})], columns=["mine"]), r"differ .*\(mine\)"),
    ):
        with pytest.raises(InputError, match=words):
            MergedOutputs([first, other])
    first.write_bytes(first.read_bytes().replace(f"{1:032x}".encode(), b"g" * 32))
    with pytest.raises(InputError, match="row 1 was changed"):
        MergedOutputs([first])
