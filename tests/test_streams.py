from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


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


def test_a_pipe_that_was_closed_raises_nothing_at_exit() -> None:
    code = (
        "from idefics_cli.cli.streams import results_on_stdout\n"
        "from idefics_cli.cli.ending import exit_codes\n"
        "import typer, sys\n"
        "try:\n"
        "    with exit_codes(), results_on_stdout() as stdout:\n"
        "        for n in range(100000): print(n, file=stdout, flush=True)\n"
        "except typer.Exit as end: sys.exit(end.exit_code)\n"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -c '{code}' | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
