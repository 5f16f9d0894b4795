from __future__ import annotations

import os
import subprocess
import sys

import pytest

from idefics_cli.cli.app import completed, make_app
from idefics_cli.cli.ask import split_words
from idefics_cli.errors import InputError, UsageError
from tests.conftest import Run

COMMANDS = ("ask", "prepare", "run", "status", "merge", "eval", "demo", "bench", "doctor", "serve", "export")
HEAVY = ("torch", "transformers", "pandas", "numpy", "PIL", "pypdfium2")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["run", "--retry-failed"], ["run", "--retry-failed", "transient"]),
        (["run", "--retry-failed", "all", "x"], ["run", "--retry-failed", "all", "x"]),
        (["run", "--retry-failed", "--resume"], ["run", "--retry-failed", "transient", "--resume"]),
        (["run", "--retry-failed=all"], ["run", "--retry-failed=all"]),
        (["run", "--", "--retry-failed"], ["run", "--", "--retry-failed"]),
        (["ask", "x", "--retry-failed"], ["ask", "x", "--retry-failed"]),
        ([], []),
    ],
)
def test_retry_failed_may_stand_by_itself(given: list[str], expected: list[str]) -> None:
    assert completed(given) == expected


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from idefics_cli.cli.app import make_app\n"
        "for command in sys.argv[1:]:\n"
        "    make_app()([command, '--help'], prog_name='idefics-cli', standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert done.stdout.count("Example") == len(COMMANDS)
    assert "bool" not in done.stdout.lower()


def test_without_arguments_the_help_is_shown(cli: Run) -> None:
    done = cli()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in COMMANDS)
    assert cli("--version").stdout.startswith("idefics-cli ")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_options(shell: str) -> None:
    words = "idefics-cli run --re"
    variables = {"_IDEFICS_CLI_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "idefics_cli"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables, "_TYPER_COMPLETE_ARGS": words},
    )
    assert "--resume" in done.stdout
    assert "--retry-failed" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rnu"], 2, "No such command 'rnu'"),
        (["run", "--rezume"], 2, "--resume"),
        (["run", "x"], 2, "questions come from -q FILE"),
        (["run", "x", "-q", "q.csv", "--ask", "q"], 2, "give one of the two"),
        (["run", "x", "--ask", "q", "--resume"], 2, "-o FILE"),
        (["run", "x", "--ask", "q", "-o", "x.tsv"], 2, "CSV or JSONL"),
        (["run", "x", "--ask", "q", "--max-failures", "x"], 2, "20 or 5%"),
        (["ask", "x"], 2, "no question"),
        (["ask", "x", "q", "--pages", "x"], 2, "as in 1-3,7,-1"),
        (["ask", "gone.pdf", "q", "--model", "tiny"], 3, "gone.pdf: no such file"),
        (["status", "gone.csv"], 3, "gone.csv: no such file"),
        (["status", "/"], 3, "/: a folder, not an output"),
        (["eval", "gone.csv"], 3, "gone.csv"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(cli: Run, arguments: list[str], code: int, words: str) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_question_of_ask_comes_last(tmp_path: object) -> None:
    assert split_words(["a.pdf", "b.pdf", "Total?"], []) == (["a.pdf", "b.pdf"], ["Total?"])
    assert split_words(["a.pdf"], ["Total?", "Date?"]) == (["a.pdf"], ["Total?", "Date?"])
    with pytest.raises(UsageError, match="the question comes last"):
        split_words(["What is the total?", __file__], [])
    with pytest.raises(UsageError, match="the question comes last"):
        split_words([__file__, __file__], [])
    with pytest.raises(InputError, match="with -q"):
        split_words([__file__, "What is the total?", "What is the date?"], [])
    with pytest.raises(UsageError, match="no question"):
        split_words(["a.pdf"], [])


def test_every_command_is_there() -> None:
    assert {command.name for command in make_app().registered_commands} == set(COMMANDS)


def test_a_command_imports_no_other() -> None:
    command = [sys.executable, "-v", "-m", "idefics_cli", "ask", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = [name for name in ("ask", "run", "bench", "serve") if f"import 'idefics_cli.cli.{name}'" in done.stderr]
    assert imported == ["ask"]
