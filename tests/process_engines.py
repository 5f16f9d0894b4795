"""Engines for a process of their own; what they do is said by the questions."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import psutil

from idefics_cli.config import ModelSettings
from idefics_cli.engine import DeferredEngine
from idefics_cli.engine.base import EngineStats, LoadedEngine
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer, GeneratedTokens, Request
from tests.fakes import FakeEngine


def letters(ids: Sequence[int]) -> str:
    """Return the text of tokens."""
    return "".join(map(chr, ids))


def engines_of(pid: int) -> list[psutil.Process]:
    """Return the processes of engines that a process has."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # or it has just ended
            found += [child] if "engine_process" in " ".join(child.cmdline()) else []
    return found


class TellingEngine(FakeEngine):
    """Spells (`spell WORD`) as tokens, again from its beginning after `|`; waits (`wait FILE`) and goes on when cancelled,
    fails as a device does (`device`), fails to submit (`submit`), ends its process (`kill`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._running = 0

    @property
    def stats(self) -> EngineStats:
        return EngineStats(self._running, 0, len(self.asked))

    def submit(self, request: Request) -> Future[Answer]:
        if request.question == "submit":
            raise KeyError("no such thing")
        self._running += 1
        future: Future[Answer] = Future()
        threading.Thread(target=self._answer, args=(request, future), daemon=True).start()
        self.asked.append((request.question, request.page_ids))
        return future

    def _answer(self, request: Request, future: Future[Answer]) -> None:
        verb, _, rest = request.question.partition(" ")
        tokens = None
        if verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "wait":
            Path(f"{rest}.taken").touch()
            while not Path(rest).exists():
                time.sleep(0.01)
        for word in rest.split("|") if verb == "spell" else ():
            for count in range(1, len(word) + 1):
                tokens = GeneratedTokens(tuple(map(ord, word[:count])), (-0.5,) * count, letters, ("!",))
                if request.on_tokens is not None:
                    request.on_tokens(tokens)
                    time.sleep(0.002)
        self.steps += 1
        self._running -= 1
        if not future.set_running_or_notify_cancel():
            Path(f"{rest}.greys").write_text(self.answer(request).text.rpartition("@")[2])
        elif verb == "device":
            future.set_exception(ModelError("the GPU failed"))
        elif tokens is not None:
            future.set_result(Answer(letters(tokens.ids), 0.5, -0.5, tokens=tokens))
        else:
            future.set_result(self.answer(request))


def _opened(load: Callable[[Callable[[], bool]], LoadedEngine]) -> DeferredEngine:
    return DeferredEngine(FakeEngine().info, load)


def _waiting(_: object) -> TellingEngine:
    print("loading", file=sys.stderr, flush=True)
    threading.Event().wait()
    raise AssertionError


def _refusing(_: object) -> TellingEngine:
    raise ModelError("no such weights, says the loader")


def _broken(_: object) -> TellingEngine:
    raise ZeroDivisionError("a bug")


def _dying(_: object) -> TellingEngine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _logging(_: object) -> TellingEngine:
    logging.getLogger("idefics_cli.engine.test").info("as %s", "planned")
    logging.getLogger("idefics_cli.engine.test").debug("nothing")
    return TellingEngine()


def open_telling(settings: ModelSettings) -> DeferredEngine:
    return _opened(lambda _: TellingEngine())


def open_waiting(settings: ModelSettings) -> DeferredEngine:
    return _opened(_waiting)


def open_refusing(settings: ModelSettings) -> DeferredEngine:
    return _opened(_refusing)


def open_broken(settings: ModelSettings) -> DeferredEngine:
    return _opened(_broken)


def open_dying(settings: ModelSettings) -> DeferredEngine:
    return _opened(_dying)


def open_logging(settings: ModelSettings) -> DeferredEngine:
    return _opened(_logging)


def open_changed(settings: ModelSettings) -> DeferredEngine:
    engine = _opened(lambda _: TellingEngine())
    engine.info.settings["--model"] = "fake 2"  # type: ignore[index]
    return engine


def open_ignoring(settings: ModelSettings) -> DeferredEngine:
    """Return an engine that never closes."""

    class Ignoring(TellingEngine):
        def close(self) -> None:
            threading.Event().wait()

    return _opened(lambda _: Ignoring())
