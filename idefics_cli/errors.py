"""What can go wrong: errors that end a run carry its exit code, failures of one document become a row."""

from enum import StrEnum

ROWS_FAILED = 6
"""Exit code of a run that finished with failed rows."""


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
    """A run that is going wrong and has been stopped; the rows so far are written."""

    exit_code = ROWS_FAILED


class OutputBusyError(IdeficsCliError):
    """Another run holds the output."""

    exit_code = 75


INTERRUPTED = 130
"""Exit code after Ctrl-C."""

TERMINATED = 143
"""Exit code after SIGTERM."""


class FailureKind(StrEnum):
    """Why a row has no answer; the first word of its `error` column."""

    UNREADABLE = "unreadable"
    ENCRYPTED = "encrypted"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too-large"
    TIMED_OUT = "timed-out"
    NO_SUCH_PAGE = "no-such-page"
    RENDER_FAILED = "render-failed"
    OUT_OF_MEMORY = "out-of-memory"
    MODEL_ERROR = "model-error"
    BAD_QUESTION = "bad-question"

    @property
    def is_passing(self) -> bool:
        """Whether the same question may be answered another time, nothing changed but the machine's state."""
        return self in (
            FailureKind.TIMED_OUT,
            FailureKind.RENDER_FAILED,
            FailureKind.OUT_OF_MEMORY,
            FailureKind.MODEL_ERROR,
        )


class RowFailedError(Exception):
    """One question that can't be answered; the others go on."""

    def __init__(self, kind: FailureKind, words: str) -> None:
        super().__init__(kind, words)  # both, so that it pickles across processes
        self.kind = kind
        self.words = words

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}"
