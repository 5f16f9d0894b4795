"""The batch form as an output: what is ours is read, what is not is refused and stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import Format
from idefics_cli.errors import InputError
from idefics_cli.records import COLUMNS
from idefics_cli.results.openai_batch import batch_values, row_values_of
from idefics_cli.results.read import OutputReader
from tests.output_rows import failed, key, row, write_output

THEIRS = {
    "id": "batch_req_1",
    "custom_id": "a",
    "response": {"status_code": 200, "request_id": "r", "body": {"choices": [{"message": {"content": "x"}}]}},
    "error": None,
}


def written(tmp_path: Path) -> Path:
    path = tmp_path / "out.jsonl"
    rows = [row(answer="12.50", id="a", custom_id="a", prompt_tokens=9, new_tokens=3, confidence=0.25), failed(1)]
    write_output(path, rows, format=Format.OPENAI_BATCH)
    return path


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    first, second = OutputReader(written(tmp_path))
    assert list(first.values) == list(second.values) == list(COLUMNS)
    told = ("answer", "id", "prompt_tokens", "new_tokens", "confidence", "status", "key")
    assert [first.values[name] for name in told] == ["12.50", "a", 9, 3, 0.25, "ok", key(0)]
    assert (first.custom_id, second.custom_id) == ("a", "")
    assert (second.values["answer"], second.failure_kind) == ("", "encrypted")
    assert second.values["prompt_tokens"] is None


def test_lines_that_another_program_has_spaced_and_ordered_are_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines))
    reader = OutputReader(path)
    assert [row.text("answer") for row in reader] == ["12.50", ""]
    assert reader.form is Format.OPENAI_BATCH


def test_a_first_line_that_is_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in (1, 5, 20, 60):
        path.write_bytes(whole[:length])
        reader = OutputReader(path)
        assert (list(reader), reader.is_cut, reader.form) == ([], True, Format.OPENAI_BATCH)
        write_output(path, [row(custom_id="a")], format=Format.OPENAI_BATCH, resume=True)
        assert len(list(OutputReader(path))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"response": None},
        {"response": {"status_code": 200, "body": None}},
        {"response": {"status_code": 400, "body": {"error": {}, "idefics_cli": {"key": "0" * 32}}}},
    ],
)
def test_an_output_of_another_program_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps(THEIRS | change) + "\n")
    with pytest.raises(InputError, match="not an output of this version of idefics-cli: line 1 has no 'document'"):
        list(OutputReader(path))


@pytest.mark.parametrize("body", [{"choices": {}}, {"choices": [3]}, {"choices": [{"message": 3}]}, {"usage": [1]}])
def test_bodies_that_were_changed_hold_no_row(body: dict[str, Any]) -> None:
    one = row(answer="x")
    values = {name: getattr(one, name) for name in COLUMNS}
    assert one.response is not None
    line = batch_values(values, one.response, "a")
    assert row_values_of(line)["answer"] == "x"
    response: Any = line["response"]
    response["body"] |= body
    assert row_values_of(line) == {}
