from __future__ import annotations

import subprocess
import sys


def run(code: str, after: str = "") -> subprocess.CompletedProcess[str]:
    command = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {after}', sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


PRINTS_MUCH = (
    "from idefics_cli.cli.streams import results_on_stdout\n"
    "from idefics_cli.errors import OutputError\n"
    "import typer, sys\n"
    "try:\n"
    "    with results_on_stdout() as stdout:\n"
    "        for n in range(100000): print(n, file=stdout, flush=True)\n"
    "except typer.Exit as end: sys.exit(end.exit_code)\n"
    "except OutputError as error: sys.exit(f'refused: {error}')\n"
)


def test_whatever_prints_goes_to_stderr_and_results_to_stdout() -> None:
    done = run(
        "import os\n"
        "from idefics_cli.cli.streams import results_on_stdout\n"
        "print('before')\n"
        "with results_on_stdout() as stdout:\n"
        "    print('a print')\n"
        "    os.write(1, b'a library in C\\n')\n"
        "    os.system('echo a child')\n"
        "    print('result', file=stdout)\n"
    )
    assert done.stdout == "before\nresult\n"
    assert sorted(done.stderr.splitlines()) == ["a child", "a library in C", "a print"]


def test_a_pipe_that_was_closed_is_no_error() -> None:
    done = run(PRINTS_MUCH, "| head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_what_can_not_be_written_is_an_output_error() -> None:
    assert "refused: can't write to stdout: No space left" in run(PRINTS_MUCH, "> /dev/full").stderr


def test_the_name_of_a_file_that_is_no_utf8_is_shown_by_escapes() -> None:
    done = run(
        "import os\n"
        "from idefics_cli.cli.streams import results_on_stdout\n"
        "with results_on_stdout() as stdout: print(os.fsdecode(b'a\\xff.pdf'), file=stdout)\n"
    )
    assert (done.stdout, done.stderr) == ("a\\udcff.pdf\n", "")
