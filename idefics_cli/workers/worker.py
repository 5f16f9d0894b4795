"""What runs in a worker: page processes, an engine and `pipeline.run`, fed with jobs as they come."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future

from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.base import EngineInfo, LoadableEngine
from idefics_cli.errors import IdeficsCliError
from idefics_cli.pipeline import Progress
from idefics_cli.records import Answer, Request
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.results.lines import RowFormatter
from idefics_cli.session import Session
from idefics_cli.workers.answering import Answering
from idefics_cli.workers.boxes import Inbox, Outbox
from idefics_cli.workers.liveness import EngineWatch, Heartbeat, beat_seconds
from idefics_cli.workers.messages import (
    Asked,
    Ended,
    Loaded,
    Opened,
    Report,
    ToWorker,
    Usage,
    WorkerSpec,
)


def serve(
    spec: WorkerSpec,
    receive: Callable[[], ToWorker],
    send: Callable[[Report], None],
    *,
    pool: PagePool | None = None,
) -> None:
    """Answer jobs until told to stop; an error that ends the worker is its last event.

    Args:
        spec: what to run.
        receive: waits for the next message; raises EOFError when there is nobody to send one.
        send: takes a report, from one thread at a time.
        pool: page processes; None starts some of its own.

    """
    progress = Progress()
    outbox = Outbox(send)
    model = spec.settings.model
    beat = beat_seconds(spec.settings.workers.hang_seconds(on_cpu=model.device.kind == "cpu"))
    heartbeat = Heartbeat(beat, outbox.beat)
    try:
        engine = _WatchedEngine(spec.open_engine(spec.settings.model), outbox, beat)
        outbox.usage, outbox.stalled = (lambda: engine.usage(progress)), engine.stalled
        with Session(settings=spec.settings, engine=engine, pool=pool) as session:
            outbox.put(Opened(dict(session.setting_values), engine.info if spec.tells_engine else None))
            inbox = Inbox(receive)
            verdicts = inbox.verdicts

            def is_answered(number: int, key: str) -> bool:
                outbox.put(Asked(number, key))
                return verdicts.get()

            fingerprint = settings_fingerprint(session.setting_values)
            output, formatter = spec.settings.output, None
            if spec.columns is not None:
                formatter = RowFormatter(output.format, spec.columns, excel_safe=output.excel_safe)
            answering = Answering(
                session.settings, engine, session.pool, fingerprint, outbox.put, is_answered, formatter
            )
            answering.run(inbox.works(), progress, session.examples)
    except IdeficsCliError as error:
        outbox.put(Ended(type(error).__name__, str(error)))
    except Exception:
        outbox.put(Ended("", traceback.format_exc()))
    finally:
        heartbeat.end()
        outbox.close()


class _WatchedEngine:
    """An engine that reports when its weights are loaded, and measures how long it has nothing to answer, or stalls."""

    def __init__(self, engine: LoadableEngine, outbox: Outbox, beat: float) -> None:
        self._engine, self._outbox, self._watch = engine, outbox, EngineWatch(beat)
        self._lock = threading.Lock()
        self._in_flight = 0
        self._loaded_at: float | None = None
        self._idle_since = self._idle_s = 0.0

    @property
    def info(self) -> EngineInfo:
        """See `Engine`."""
        return self._engine.info

    def start(self) -> None:
        """See `Engine`."""
        self._engine.start()

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`."""
        if self._loaded_at is None:
            self._engine.load()
            self._loaded_at = self._idle_since = time.monotonic()
            self._outbox.put(Loaded())
            self._outbox.flush()  # what this request does to the worker is not done to one that loads
        with self._lock:
            if self._in_flight == 0:
                self._idle_s += time.monotonic() - self._idle_since
            self._in_flight += 1
        answer = self._engine.submit(request)
        answer.add_done_callback(self._done)
        return answer

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    def usage(self, progress: Progress) -> Usage:
        """Return what was done so far."""
        with self._lock:
            now = time.monotonic()
            idle = self._idle_s + (now - self._idle_since if self._loaded_at and not self._in_flight else 0.0)
            loaded = now - self._loaded_at if self._loaded_at else 0.0
        return Usage(progress.pages, progress.split_pages, loaded, idle)

    def stalled(self) -> float:
        """Return for how long it has had requests and has done no step; asked at every beat, from one thread."""
        return self._watch.look(time.monotonic(), self._in_flight, self._engine.steps)

    def _done(self, answer: Future[Answer]) -> None:  # noqa: ARG002 - the signature of a callback
        with self._lock:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle_since = time.monotonic()
