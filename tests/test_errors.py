from __future__ import annotations

import pickle

import pytest

from idefics_cli import errors
from idefics_cli.errors import FailureKind, IdeficsCliError, RowFailedError, shortened


def test_exit_codes_are_those_promised() -> None:
    codes = {kind.__name__: kind.exit_code for kind in IdeficsCliError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "InputError": 3,
        "ModelError": 4,
        "OutputError": 5,
        "TooManyFailuresError": 6,
        "OutputBusyError": 75,
    }
    assert (errors.ROWS_FAILED, errors.INTERRUPTED, errors.TERMINATED) == (6, 130, 143)


def test_a_failed_row_crosses_processes_whole() -> None:
    failure = pickle.loads(pickle.dumps(RowFailedError(FailureKind.ENCRYPTED, "needs a password")))
    assert (failure.failure.kind, str(failure)) == (FailureKind.ENCRYPTED, "encrypted: needs a password")


@pytest.mark.parametrize(("text", "shown"), [("", ""), ("12345", "12345"), ("123456", "12345...")])
def test_a_long_text_is_cut_and_says_so(text: str, shown: str) -> None:
    assert shortened(text, 5) == shown
