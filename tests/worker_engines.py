"""Engines for worker processes, and a run with them as a command: what they do is said by the questions."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

from idefics_cli import batch
from idefics_cli.cli.exit_codes import exit_code_of, handle_signals
from idefics_cli.config import Gpus, ModelSettings, OutputSettings, PageSettings, RunSettings, Split, WorkerSettings
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer, Request
from tests.fakes import FakeEngine


class WorkerEngine(FakeEngine):
    """Takes its time (`slow`), waits (`wait FILE`), ends its process (`kill`).

    The first time it fails, hangs, or stops its process (`poison FILE`, `hang FILE`, `stop FILE`).
    """

    def load(self) -> object:
        return self

    def answer(self, request: Request) -> Answer:
        words = request.question.split()
        if "kill" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in words:
            time.sleep(0.02)
        while words[0] == "wait" and not Path(words[1]).exists():
            time.sleep(0.02)
        if words[0] in ("poison", "hang", "stop") and not Path(words[1]).exists():
            Path(words[1]).touch()
            if words[0] == "poison":
                raise ModelError("the device has failed")
            if words[0] == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
        return super().answer(request)


class Unloadable(WorkerEngine):
    """Is no model."""

    def load(self) -> object:
        raise ModelError("no such weights, says the loader")


class DiesLoading(WorkerEngine):
    """Ends its process while it loads."""

    def load(self) -> object:
        os.kill(os.getpid(), signal.SIGKILL)
        return self


def open_fake(settings: ModelSettings) -> WorkerEngine:
    return WorkerEngine()


def open_unloadable(settings: ModelSettings) -> WorkerEngine:
    return Unloadable()


def open_dies_loading(settings: ModelSettings) -> WorkerEngine:
    return DiesLoading()


def settings(
    path: Path | None,
    workers: int | None,
    *,
    unordered: bool = False,
    hang_timeout: float | None = None,
    **output: object,
) -> RunSettings:
    return RunSettings(
        pages=PageSettings(workers=2, split=Split.NEVER),
        model=ModelSettings("tiny", device="cpu"),  # type: ignore[arg-type]
        output=OutputSettings(path, **output),  # type: ignore[arg-type]
        workers=WorkerSettings(
            None if workers is None else Gpus(workers), unordered=unordered, hang_timeout=hang_timeout
        ),
    )


def main() -> None:
    """Run: questions, output, number of workers or address of a Ray cluster; resumes."""
    questions, output, workers = sys.argv[1:]
    given = settings(Path(output), int(workers) if workers.isdigit() else None, resume=True)
    if not workers.isdigit():
        given = dataclasses.replace(given, workers=WorkerSettings(ray=workers))
        given = dataclasses.replace(given, model=ModelSettings("tiny"))
    from tests import worker_engines  # not __main__, which workers don't have

    handle_signals()
    sys.exit(exit_code_of(lambda: batch.run([], questions, given, sys.stdout, open_with=worker_engines.open_fake)))


if __name__ == "__main__":
    main()
