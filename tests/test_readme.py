"""README and docs say what is so: every line of README that can be run is run, every name is looked up."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from idefics_cli.errors import FailureKind
from idefics_cli.records import COLUMNS
from tests.conftest import ROOT, SAMPLES

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
FAILURES = DOCS[ROOT / "docs" / "failures.md"]
COMMANDS = ("ask", "run", "status", "merge", "eval", "demo", "bench", "doctor", "prepare", "serve", "export")
EXIT_CODES = ("0", "1", "2", "3", "4", "5", "6", "75", "130, 143")
OTHERS_OPTIONS = {"--version", "--array", "--gres", "--requeue", "--dist"}


def block(name: str) -> str:
    """Return the text of README's code block of this name."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```\n<!-- /{name} -->", README, re.DOTALL)
    assert found, name
    return found[1]


USE = [line for line in block("use").splitlines() if line and not line.startswith("#")]


def line_with(words: str) -> str:
    (line,) = (line for line in USE if words in line)
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What README says is there: the samples, and the command in .venv/bin."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "samples").symlink_to(SAMPLES)
    command = folder / ".venv" / "bin" / "idefics-cli"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m idefics_cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return folder


def shell(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines after README's own exports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IDEFICS_CLI")}
    exports = [line for line in USE if line.startswith("export ")]
    assert len(exports) == 2
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join([*exports, *lines])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def question() -> dict[str, str]:
    """The one line of README's questions file."""
    (line,) = csv.DictReader(block("questions").splitlines())
    return line


def test_every_line_of_the_block_is_run_here() -> None:
    known = ("export ", "idefics-cli ask ", "idefics-cli run ", "idefics-cli status ", "idefics-cli eval ", "printf ")
    assert [line for line in USE if not line.startswith(known)] == ["idefics-cli doctor"]
    assert len(USE) == 10
    assert sum(line.startswith("idefics-cli ask ") for line in USE) == 2
    assert sum(line.startswith("idefics-cli run ") for line in USE) == 2


def test_the_answer_is_all_that_stdout_gets(folder: Path, question: dict[str, str]) -> None:
    done = shell(folder, line_with('letter.pdf "'))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{question['answers']}\n", "")


def test_several_documents_give_a_line_for_each_question(folder: Path) -> None:
    done = shell(folder, line_with("samples/documents/archive"))
    assert done.returncode == 0, done.stderr
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names == [f"samples/documents/{name}" for name in ("letter.pdf", "archive/letter.pdf") for _ in range(2)]
    assert [line.partition(": ")[2].partition("? ")[0] for line in done.stdout.splitlines()] == [
        *("To whom is the letter addressed", "Who signed the letter")
    ] * 2
    assert "not found" not in done.stdout


def test_a_run_is_gone_on_with_complete_and_scored(folder: Path) -> None:
    first, again = (line for line in USE if line.startswith("idefics-cli run "))
    done = shell(folder, first)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    before = (folder / "answers.csv").read_bytes()
    rest = shell(folder, again, "echo --status", line_with("idefics-cli status"), "echo --eval", line_with(" eval "))
    assert rest.returncode == 0, rest.stderr
    assert (folder / "answers.csv").read_bytes() == before
    rows = list(csv.DictReader((folder / "answers.csv").read_text(encoding="utf-8").splitlines()))
    with (SAMPLES / "questions.csv").open(encoding="utf-8", newline="") as stream:
        asked = len(list(csv.DictReader(stream)))
    assert len(rows) == asked
    assert f"the {asked} questions" in README
    assert f"0 rows, {asked} already answered" in rest.stderr
    _, _, shown = rest.stdout.partition("--status\n")
    status, _, scores = shown.partition("--eval\n")
    facts = dict(re.findall(r"^ *(\S.*?)  +(\S.*?) *$", status, re.MULTILINE))
    assert (facts["rows"], facts["failed"], facts["missing"]) == (str(asked), "0", "0")
    assert "ANLS" in scores
    right = sum(row["answer"] == row["answers"] for row in rows)
    assert right / asked > 0.9


def test_a_pipe_gives_the_row_that_is_shown(folder: Path, question: dict[str, str]) -> None:
    done = shell(folder, line_with("printf"))
    assert done.returncode == 0, done.stderr
    row, shown = json.loads(done.stdout), json.loads(block("row"))
    assert list(shown) == list(row)
    assert list(row) == list(COLUMNS)
    for name in ("page", "question", "answer", "status", "crops", "prompt_tokens", "new_tokens", "model", "key"):
        assert row[name] == shown[name], name
    assert (shown["document"], shown["answer"]) == (question["document"], question["answers"])


def test_doctor_sees_the_tiny_model_and_its_image_check_passes(folder: Path) -> None:
    done = shell(folder, line_with("doctor"))
    assert done.returncode == 0, done.stderr
    assert "model tiny" in done.stdout
    assert all(words in done.stdout for words in ("pypdfium2", "rasterizers", "engine", "loaded in", "yes: "))
    assert done.stdout.count("passed") == 2
    assert re.search(r"the answer changes with the image: What is the total\? .* and of another '97\.35'", done.stdout)
    assert "failed" not in done.stdout.lower()


def test_the_questions_are_a_file_whose_answer_is_true(folder: Path) -> None:
    (folder / "mine.csv").write_text(block("questions"), encoding="utf-8")
    done = shell(folder, "idefics-cli run -q mine.csv -o - --format jsonl")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["answer"] == row["answers"]


def test_the_python_lines_print_every_row(folder: Path, question: dict[str, str]) -> None:
    (folder / "snippet.py").write_text(block("python"), encoding="utf-8")
    done = shell(folder, f'"{sys.executable}" snippet.py')
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first == question["answers"]
    assert [row.split()[0] for row in rows] == ["samples/documents/archive/letter.pdf", "samples/documents/notice.bmp"]


def test_every_option_and_command_that_is_named_is_there(folder: Path) -> None:
    options: set[str] = set()
    for command in COMMANDS:
        options.update(re.findall(r"--[a-z][a-z-]+", shell(folder, f"idefics-cli {command} --help").stdout))
    for path, text in DOCS.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text))
        assert not named - options - OTHERS_OPTIONS, path.name
        assert set(re.findall(r"`?idefics-cli ([a-z]+)", text)) <= set(COMMANDS), path.name


def test_each_kind_and_each_exit_code_names_a_test_that_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    rows = dict(re.findall(r"^\| `?([a-z0-9, -]+?)`? \|.*\| `(test_\w+)` \|$", FAILURES, re.MULTILINE))
    assert set(rows) == {*map(str, FailureKind), *EXIT_CODES}
    for test in rows.values():
        assert f"def {test}(" in tests, test


def test_every_column_is_explained_in_order() -> None:
    table = re.findall(r"^\| (`.+?`) \|", DOCS[ROOT / "docs" / "columns.md"], re.MULTILINE)
    assert [name for cell in table for name in re.findall(r"`(\w+)`", cell)] == list(COLUMNS)


def test_every_sample_stands_in_the_table() -> None:
    table = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for file in (SAMPLES / "documents").rglob("*.*"):
        assert f"`{file.relative_to(SAMPLES)}`" in table


def test_links_lead_to_files() -> None:
    for path, text in DOCS.items():
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("https://") or (path.parent / link).is_file(), f"{path.name}: {link}"


def test_readme_stays_short() -> None:
    assert README.count("\n") < 170
