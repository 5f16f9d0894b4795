from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.config import Format, RetryFailed
from idefics_cli.errors import FailureKind, InputError
from idefics_cli.results.status import read_status
from tests.output_rows import failed, key, row, write_output

ENDINGS = ["csv", "jsonl"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_failures_times_and_costs(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    rows = [
        row(key=key(1), answered_at="2026-11-21T03:04:05Z", vision_ms=1000.0),
        row(key=key(2), answered_at="2026-11-22T03:04:05Z", vision_ms=500.0, decode_ms=1500.0),
        failed(3),
        failed(4, "timed-out: page 1"),
        failed(5),
    ]
    write_output(path, rows, format=Format(ending))
    with path.open("a") as stream:
        stream.write("torn")
    status = read_status(path)
    assert (status.rows, status.failed, status.form) == (5, 3, ending)
    assert status.failures == {"encrypted": 2, "timed-out": 1}
    assert status.last_answered_at == "2026-11-22T03:04:05Z"
    assert status.seconds_per_row == 3.0 / 2
    assert list(status.fingerprints.values()) == [5]
    assert status.end == path.stat().st_size - len("torn")
    assert [number for number in range(8) if status.answered.take(key(number))] == [1, 2, 3, 4, 5]


def test_an_empty_output(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.touch()
    status = read_status(path)
    assert (status.rows, status.seconds_per_row, status.last_answered_at, len(status.answered)) == (0, None, "", 0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_transient_failures_are_told_from_lasting_ones(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    kinds = list(FailureKind)
    write_output(path, [failed(n, f"{kind}: words") for n, kind in enumerate(kinds)], format=Format(ending))
    for retry, gone in (
        (None, 0),
        (RetryFailed.TRANSIENT, sum(k.is_transient for k in kinds)),
        (RetryFailed.ALL, len(kinds)),
    ):
        status = read_status(path, retry)
        assert status.to_retry == gone
        assert len(status.answered) == len(kinds) - gone
    status = read_status(path, RetryFailed.TRANSIENT)
    assert {kind for n, kind in enumerate(kinds) if not status.answered.take(key(n))} == {
        k for k in kinds if k.is_transient
    }


def test_cells_that_were_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_output(path, [row(vision_ms=10.5)])
    text = path.read_text()
    for one, other in (("10.5", '"10,5"'), (key(0), "x" * 32)):
        path.write_text(text.replace(one, other))
        with pytest.raises(InputError, match=r"out\.csv: row 1 was changed"):
            read_status(path)
