from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from idefics_cli.cli.console import set_up_messages
from idefics_cli.cli.exit_codes import Interrupted, exit_code_of
from idefics_cli.config import MessageSettings
from idefics_cli.errors import IdeficsCliError, InputError, ModelError, OutputBusyError, OutputError, UsageError


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize("kind", [UsageError, InputError, ModelError, OutputError, OutputBusyError])
@pytest.mark.parametrize("verbose", [True, False])
def test_own_errors_become_a_line_and_their_exit_code(
    kind: type[IdeficsCliError], verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_messages(MessageSettings(verbose=verbose))
    assert exit_code_of(raising(kind("x.pdf: what is wrong"))) == kind.exit_code
    said = capsys.readouterr().err
    assert said.endswith("error: x.pdf: what is wrong\n")
    assert ("Traceback" in said) is verbose


def test_interrupts_bugs_and_codes_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(Interrupted(signal.SIGINT))) == 130
    assert exit_code_of(raising(Interrupted(signal.SIGTERM))) == 143
    assert "Traceback" not in capsys.readouterr().err
    assert exit_code_of(raising(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err
    assert exit_code_of(lambda: 6) == 6
    assert exit_code_of(lambda: None) == 0


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_an_interrupt_during_the_imports_is_no_traceback(seconds: float) -> None:
    code = (
        "import sys, time; sys.argv[1:] = ['doctor', '--model', 'tiny']\n"
        "from idefics_cli.cli import app\n"
        "print('ready', flush=True); app.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import time\n"
        "from idefics_cli.cli.exit_codes import exit_code_of, exit_process, handle_signals\n"
        "def command():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaning up', flush=True); time.sleep(60)\n"
        "handle_signals(); exit_process(exit_code_of(command))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in ("ready\n", "cleaning up\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM
    process.stdout.close()
