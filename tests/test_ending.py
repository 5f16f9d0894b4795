from __future__ import annotations

import pytest
import typer

from idefics_cli.cli.ending import exit_codes
from idefics_cli.errors import IdeficsCliError, InputError, ModelError, OutputBusyError, OutputError, UsageError


@pytest.mark.parametrize("kind", [UsageError, InputError, ModelError, OutputError, OutputBusyError])
@pytest.mark.parametrize("verbose", [True, False])
def test_own_errors_become_a_line_and_their_exit_code(
    kind: type[IdeficsCliError], verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, exit_codes(verbose=verbose):
        raise kind("x.pdf: what is wrong")
    assert ended.value.exit_code == kind.exit_code
    said = capsys.readouterr().err
    assert said.endswith("error: x.pdf: what is wrong\n")
    assert ("Traceback" in said) is verbose


def test_interrupts_and_bugs() -> None:
    with pytest.raises(typer.Exit) as ended, exit_codes():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    with pytest.raises(ZeroDivisionError), exit_codes():  # a bug keeps its traceback, and Python exits with 1
        raise ZeroDivisionError
