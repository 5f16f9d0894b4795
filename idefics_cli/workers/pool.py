"""What the dispatcher needs of workers, however they are started and reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from idefics_cli.workers.messages import Joined, Lost, Report, ToWorker


class WorkerPool(Protocol):
    """Workers by index. One thread uses it; `wake` may be called from any."""

    def start(self, index: int) -> bool:
        """Start a worker, or start it again after it was lost.

        Returns whether it takes jobs at once; where it does not, `events` reports `Joined` when it does.
        """

    def send(self, index: int, message: ToWorker) -> None:
        """Send a message to a worker; one that is lost is reported by `events`."""

    def events(self, timeout: float | None) -> Sequence[tuple[int, Report | Joined | Lost]]:
        """Wait for what workers report, that `wake` is called, or for so many seconds.

        After `Lost` the worker is ended. `Joined` may come with an index beyond those that were started: a new worker.
        """

    def wake(self) -> None:
        """Let `events` return; from any thread."""

    def end(self, index: int) -> str:
        """End a worker at once, and say how it ended."""

    def close(self, *, is_done: bool) -> None:
        """End all workers; those that were told to stop may do so by themselves when the run is done."""
