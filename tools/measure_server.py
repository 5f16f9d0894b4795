"""Serves with an engine that waits as long as a GPU would compute: what the server itself costs a question.

    python tools/measure_server.py [PORT]                                            # then, from another terminal:
    python tools/load_server.py load http://127.0.0.1:8000/v1 --clients 64 --stream

    pkill -USR1 -f measure_server

Times are those of the 8B shape on an H100 (docs/performance.md). At SIGUSR1 it prints the questions answered since the
last time, and the milliseconds of processor that the server's threads took for each. Ctrl-C ends it.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from idefics_cli.config import ModelSettings, PageSettings, ServeSettings, Split
from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.records import Answer, GeneratedTokens, Request
from idefics_cli.server.serving import Server, ServerSettings

_ENCODE, _PREFIX, _PREFILL, _DECODE = 0.063, 0.008, 0.0015, 0.0071  # seconds a page, prompt of it, question, step
_BATCH = 64
_TOKENS = 16


class PacedEngine:
    """Answers as many questions a second as the engine would, with words that mean nothing."""

    is_loaded = True

    def __init__(self) -> None:
        self.info = EngineInfo(
            "paced", {"--max-new-tokens": str(_TOKENS)}, 2 * _BATCH, Idefics2ImageProcessor(980, 378)
        )
        self.stats, self.steps, self.answered = EngineStats(), 0, 0
        self.reported, self.ticks = 0, Counter[str]()
        self._submitted: queue.Queue[tuple[Request, Future[Answer]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def load(self) -> object:
        self.start()
        return self

    def submit(self, request: Request) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._submitted.put((request, future))
        return future

    def close(self) -> None:
        self._submitted.put(None)

    def _run(self) -> None:
        encoded: set[str] = set()
        running: list[tuple[Request, Future[Answer], list[int]]] = []
        while True:
            while len(running) < _BATCH and (not running or not self._submitted.empty()):
                if (taken := self._submitted.get()) is None:
                    return
                new = [page for page in taken[0].page_ids if page not in encoded]
                encoded.update(new)
                time.sleep((_ENCODE + _PREFIX) * len(new) + _PREFILL)
                running.append((*taken, []))
            time.sleep(_DECODE)
            self.steps += 1
            for request, future, ids in running:
                ids.append(len(ids))
                if len(ids) == _TOKENS:
                    if future.set_running_or_notify_cancel():  # else its client has left
                        self.answered += 1
                        future.set_result(Answer(_words(ids), 0.5, -0.5, 500, _TOKENS))
                elif request.on_tokens is not None:
                    request.on_tokens(GeneratedTokens(tuple(ids), (-0.5,) * len(ids), _words))
            running = [one for one in running if len(one[2]) < _TOKENS]


def _words(ids: Sequence[int]) -> str:
    return "word " * len(ids)


def _report(engine: PacedEngine) -> None:
    """Print what was spent since the last time."""
    names = {thread.native_id: thread.name.rstrip("-_0123456789") for thread in threading.enumerate()}
    ticks: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[names.get(int(task.name), "other")] += int(fields[11]) + int(fields[12])
    count = engine.answered - engine.reported
    print(f"{count} questions; milliseconds of processor a question, by thread:", end=" ")
    spent = (ticks - engine.ticks).most_common()
    print(", ".join(f"{name} {10 * one / max(1, count):.2f}" for name, one in spent), flush=True)
    engine.reported, engine.ticks = engine.answered, ticks


if __name__ == "__main__":
    paced = PacedEngine()
    serve = ServeSettings(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
    settings = ServerSettings(ModelSettings("paced"), PageSettings(split=Split.ALWAYS), serve)
    server = Server(settings, open_with=lambda _: paced, on_ready=lambda place: print(place, flush=True))
    signal.signal(signal.SIGUSR1, lambda *_: _report(paced))
    server.run()
