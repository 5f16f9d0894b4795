"""What can go wrong: an error that ends a run carries its exit code, a failure of one question becomes its row."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

ROWS_FAILED = 6
"""Exit code of a run that finished with failed rows."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
TERMINATED = 143
"""Exit code after SIGTERM."""


class IdeficsCliError(Exception):
    """An error that ends the run. Its message names the culprit and the way out."""

    exit_code = 1


class UsageError(IdeficsCliError):
    """Options that contradict each other or have no meaning."""

    exit_code = 2


class InputError(IdeficsCliError):
    """Questions that can't be read, or no document to ask them of."""

    exit_code = 3


class ModelError(IdeficsCliError):
    """A checkpoint that can't be loaded, or a device that can't be used."""

    exit_code = 4


class OutputError(IdeficsCliError):
    """An output that can't be written."""

    exit_code = 5


class TooManyFailuresError(IdeficsCliError):
    """More rows failed than `--max-failures` allows; the rows so far are written."""

    exit_code = ROWS_FAILED


class OutputBusyError(IdeficsCliError):
    """Another run holds the output."""

    exit_code = 75


class FailureKind(StrEnum):
    """Why a row has no answer; the first word of its `error` column."""

    UNREADABLE = "unreadable"
    ENCRYPTED = "encrypted"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too-large"
    TIMED_OUT = "timed-out"
    NO_SUCH_PAGE = "no-such-page"
    RENDER_FAILED = "render-failed"
    UNREACHABLE = "unreachable"
    OUT_OF_MEMORY = "out-of-memory"
    MODEL_ERROR = "model-error"
    BAD_QUESTION = "bad-question"
    ENDPOINT = "endpoint"

    @property
    def is_transient(self) -> bool:
        """Whether the same question may be answered another time, nothing changed but the state of the machine."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    (
        FailureKind.TIMED_OUT,
        FailureKind.RENDER_FAILED,
        FailureKind.UNREACHABLE,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.MODEL_ERROR,
        FailureKind.ENDPOINT,
    )
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one question has no answer."""

    kind: FailureKind
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class RowFailedError(Exception):
    """One question that can't be answered; the others go on."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(kind, detail)  # both, so that it pickles across processes
        self.failure = Failure(kind, detail)

    def __str__(self) -> str:
        return str(self.failure)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of a library says; its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortened(text: str, length: int) -> str:
    """Return a text of at most so many characters, and dots where it was cut."""
    return text if len(text) <= length else text[:length] + "..."


def one_line(text: str) -> str:
    """Return a text without line ends and without characters that control a terminal."""
    spaced = " ".join(text.split())
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) == "Cc" else sign for sign in spaced)
