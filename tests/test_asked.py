from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.cli.asked import read_questions
from idefics_cli.config import RunSettings
from idefics_cli.errors import InputError


def test_a_file_is_read_whole_with_its_columns(tmp_path: Path, grey_png: Callable[..., Path]) -> None:
    grey_png("a.png", 9)
    (tmp_path / "q.csv").write_text("question,document,mine\nWho?,a.png,1\nWhat?,a.png,2\n")
    asked = read_questions(str(tmp_path / "q.csv"), [], RunSettings())
    assert (asked.total, asked.columns, asked.ready()) == (2, ("mine",), True)
    assert [job.question.text for job in asked.jobs] == ["Who?", "What?"]


def test_addresses_in_a_file_need_leave_and_fail_as_rows(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question,document\nWho?,http://127.0.0.1:9/a.pdf\n")
    with pytest.raises(InputError, match=r"q\.csv:2: .*--allow-urls"):
        read_questions(str(tmp_path / "q.csv"), [], RunSettings())
    (job,) = read_questions(str(tmp_path / "q.csv"), [], RunSettings(allow_urls=True)).jobs
    assert "not on the public internet" in str(job.question.failure)
    with pytest.raises(InputError, match="gone"):
        read_questions(str(tmp_path / "gone.csv"), [], RunSettings())
