"""README says what is so."""

from __future__ import annotations

import re

from idefics_cli.errors import FailureKind
from idefics_cli.records import COLUMNS
from tests.conftest import ROOT, SAMPLES, Run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_kind_and_every_column_is_named() -> None:
    for kind in FailureKind:
        assert f"`{kind}`" in README
    assert ", ".join(COLUMNS) in re.sub(r"\s+", " ", README)


def test_every_option_that_it_names_is_there(cli: Run) -> None:
    helps = " ".join(cli(command, "--help").stdout for command in ("ask", "run", "demo", "eval", "bench", "doctor"))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert option in helps, option


def test_every_sample_file_stands_in_the_table() -> None:
    table = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for file in (SAMPLES / "documents").rglob("*.*"):
        assert f"`{file.relative_to(SAMPLES)}`" in table


def test_each_kind_and_each_exit_code_names_the_test_that_produces_it() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    rows = re.findall(r"^\| (.+?) \|.*\| `(test_\w+)` \|$", README, re.MULTILINE)
    for name in (*(f"`{kind}`" for kind in FailureKind), "0", "1", "2", "3", "4", "5", "6", "75", "130, 143"):
        assert name in [first.removesuffix(" *") for first, _ in rows], name
    for _, test in rows:
        assert f"def {test}(" in tests, test
