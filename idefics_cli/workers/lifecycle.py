"""Workers come and go: started, lost, hung or on a machine that lacks the documents; replaced or given up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from idefics_cli.config import RunSettings
from idefics_cli.errors import IdeficsCliError, InputError, ModelError
from idefics_cli.workers.liveness import Silence, beat_seconds
from idefics_cli.workers.messages import GoOn
from idefics_cli.workers.pool import WorkerPool
from idefics_cli.workers.supervisor import Supervisor

_MOST_FAILED_STARTS = 3


class Lifecycle:
    """Starts workers, and puts others in the place of those that end."""

    def __init__(
        self, supervisor: Supervisor, pool: WorkerPool, settings: RunSettings, on_note: Callable[[str], None]
    ) -> None:
        """Take who is told what happens to workers (`on_note`), and who knows what they hold."""
        self._supervisor, self._pool, self._on_note = supervisor, pool, on_note
        self._sends_documents = settings.workers.send_documents
        self._limit = settings.workers.hang_seconds(on_cpu=settings.model.device.kind == "cpu")
        self.beat = beat_seconds(self._limit)
        """Seconds after which workers are looked at again, at most."""
        self._silence = Silence(self.beat)

    def start(self, index: int) -> None:
        """Start a worker; it gets jobs when it takes them."""
        if self._pool.start(index):
            self.open(index)

    def open(self, index: int, name: str | None = None) -> None:
        """Let a worker have jobs, under the name that it has got now."""
        self._supervisor.open(index)
        worker = self._supervisor.worker(index)
        worker.name = name or worker.name
        self._silence.heard(index, time.monotonic())

    def heard(self, index: int, stalled_s: float) -> None:
        """Say that a worker has reported; it is replaced where its engine hangs.

        Raises:
            ModelError: no worker is left.

        """
        if not self._supervisor.worker(index).is_open:
            return  # it has just ended
        self._silence.heard(index, time.monotonic())
        if stalled_s > self._limit:
            self._replace(index, f"hung: its engine has done no step for {stalled_s:.0f} s")

    def replace_silent(self) -> None:
        """Replace the workers that report nothing any more.

        Raises:
            ModelError: no worker is left.

        """
        for index in self._silence.longer_than(self._limit, time.monotonic()):
            self._replace(index, f"hung: it has reported nothing for --hang-timeout, {self._limit:g} s")

    def check_seen(self, index: int, path: str) -> None:
        """Give up a worker whose machine lacks a document that is here; its questions go to others.

        Raises:
            InputError: no worker is left.

        """
        if self._sends_documents or not os.access(path, os.R_OK):
            self._pool.send(index, GoOn())
            return
        self._pool.end(index)
        words = (
            f"{self._supervisor.worker(index).name}: does not see {path}: share the folder with every node under the "
            "same path, or use --send-documents"
        )
        self._give_up(index, words, InputError(words), is_blameless=True)

    def lose(self, index: int, why: str, *, is_blameless: bool = False) -> None:
        """Give what a lost worker held to others, and start it again, or give it up.

        Args:
            index: of the worker.
            why: it was lost.
            is_blameless: see `Supervisor.lose`.

        Raises:
            ModelError: no worker is left.

        """
        worker = self._supervisor.worker(index)
        words, failed = f"{worker.name}: lost ({why}); ", f"load the model {_MOST_FAILED_STARTS} times in a row"
        if not worker.is_loaded and not is_blameless and worker.failed_starts + 1 >= _MOST_FAILED_STARTS:
            error = ModelError(f"{words}no worker is left: none could {failed}")
            self._give_up(index, f"{words}given up: it could not {failed}", error)
            return
        held = len(worker.held)
        self._silence.forget(index)
        self._supervisor.lose(index, is_blameless=is_blameless)
        self.start(index)
        self._on_note(f"{words}started again, and its {held:,} unanswered questions go first")

    def _replace(self, index: int, why: str) -> None:
        self._pool.end(index)
        self.lose(index, why)

    def _give_up(self, index: int, words: str, error: IdeficsCliError, *, is_blameless: bool = False) -> None:
        """Give what a worker held to others for good; raises the error where no worker is left."""
        self._silence.forget(index)
        self._supervisor.lose(index, is_blameless=is_blameless)
        self._supervisor.worker(index).is_given_up = True
        if all(worker.is_given_up for worker in self._supervisor.workers):
            raise error
        self._on_note(words)
