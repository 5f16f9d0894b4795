"""A batch: questions and documents -> rows -> an output, and what they add up to. The command line is above this."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import IO

from idefics_cli.config import RunSettings
from idefics_cli.engine import open_engine
from idefics_cli.engine.base import Engine, EngineInfo, OpenEngine
from idefics_cli.errors import TooManyFailuresError
from idefics_cli.inputs import Inputs, read_inputs
from idefics_cli.local_socket.pool import server_for_run
from idefics_cli.openai_api.batch_file import LONGEST_ANSWER
from idefics_cli.pipeline import Progress
from idefics_cli.questions.read import accepted_answers
from idefics_cli.records import Answer, Request, Row
from idefics_cli.results.answered import Answered
from idefics_cli.results.check import check_output, read_state
from idefics_cli.results.output import open_output
from idefics_cli.results.stats import RunStats
from idefics_cli.session import Session, open_engine_of
from idefics_cli.workers.dispatch import Dispatcher
from idefics_cli.workers.start import Workers, open_workers
from idefics_cli.workers.state import WorkerShare


@dataclass(slots=True)
class BatchResult:
    """What a batch did."""

    stats: RunStats = field(default_factory=RunStats)
    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    """What to tell the user about the output."""
    seconds: float = 0.0
    """Wall time, from the first job to the last row."""
    kept_failed: int = 0
    """Failed rows of the output that are not asked again."""
    workers: list[WorkerShare] = field(default_factory=list)
    """What each worker did, where there were several."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a batch would do."""

    progress: Progress
    """Its `rows` are those to be asked, its `failed` those that fail for their input."""
    failures: Counter[str]
    """Rows that would fail for their input, by `document: error`."""
    seconds_per_row: float | None
    """What an earlier row of the output cost; None where there is none."""
    notes: list[str]
    workers: str = ""
    """Which there would be, where there are several."""


def run(
    documents: Sequence[str],
    questions: str | Sequence[str],
    settings: RunSettings,
    stdout: IO[str],
    *,
    engine: Engine | None = None,
    on_start: Callable[[Inputs, Session], None] = lambda *_: None,
    on_row: Callable[[Row, Progress], None] = lambda *_: None,
    on_note: Callable[[str], None] = lambda _: None,
    on_shares: Callable[[list[WorkerShare]], None] = lambda _: None,
    on_detail: Callable[[str], None] = lambda _: None,
    open_with: OpenEngine = open_engine,
) -> BatchResult:
    """Answer questions and write their rows.

    Args:
        documents: files, folders and globs.
        questions: the name of a file, `-` for stdin, or the questions themselves.
        settings: of the run.
        stdout: takes the rows where no file is named.
        engine: takes the place of the checkpoint's.
        on_start: told what is asked before the first row.
        on_row: told of each row once it is written.
        on_note: told what happens to workers.
        on_shares: told from time to time what each worker did so far.
        on_detail: told whether a server is used, and why not.
        open_with: opens the checkpoint, here and in each worker; a function of a module.

    Raises:
        IdeficsCliError: nothing could be asked, the output can't be written, or too many rows failed.

    """
    inputs = read_inputs(documents, questions, settings)
    settings = _for_inputs(settings, inputs)
    result = BatchResult()
    with contextlib.ExitStack() as stack:
        workers = open_workers(settings, inputs.columns, open_with, on_note)
        if workers is not None:
            stack.callback(workers.pool.close, is_done=False)
            engine = engine or (NullEngine(workers.info) if workers.info else None)
        session = stack.enter_context(Session(settings=settings, engine=engine or open_engine_of(settings, open_with)))
        values = session.setting_values
        paths = inputs.paths + (session.examples.paths if session.examples else [])
        check_output(settings.output, inputs.columns, values, paths)
        on_start(inputs, session)
        started = time.monotonic()
        with open_output(settings.output, inputs.columns, stdout, values, paths) as output:
            result.kept_failed = output.earlier.failed - output.earlier.to_retry
            is_local = engine is None and open_with is open_engine and settings.endpoint.url is None
            if workers is None and is_local and not settings.server.no_server:
                workers = _server(settings, on_detail)
            answering = _Answering(session, workers, output.answered, result.progress, on_note, on_shares)
            try:
                with contextlib.closing(answering.rows(inputs)) as rows:
                    for row in rows:
                        output.write(row)
                        result.stats.add(row, accepted_answers(row.extra.get("answers")))
                        on_row(row, result.progress)
                        _check_failures(settings, result.stats, row)
                if settings.questions.limit is None:
                    output.complete()
            finally:
                result.seconds = time.monotonic() - started
                result.workers = answering.shares()
        result.kept_failed -= output.dropped_failed
        result.notes += output.notes
    return result


def _for_inputs(settings: RunSettings, inputs: Inputs) -> RunSettings:
    """Return the settings of a run; a question of a batch file may want a longer answer than the others."""
    if not inputs.is_batch:
        return settings
    longest = max(LONGEST_ANSWER, settings.model.max_new_tokens or 0)
    return replace(settings, model=replace(settings.model, most_new_tokens=longest))


def _server(settings: RunSettings, on_detail: Callable[[str], None]) -> Workers | None:
    """Return a server that answers as this process would as the one worker; None where there is none."""
    pool = server_for_run(settings, on_detail)
    return None if pool is None else Workers(pool, [f"the server at {pool.path}"], "")


class _Answering:
    """What answers a run: this process, workers, or a server."""

    def __init__(
        self,
        session: Session,
        workers: Workers | None,
        answered: Answered,
        progress: Progress,
        on_note: Callable[[str], None],
        on_shares: Callable[[list[WorkerShare]], None],
    ) -> None:
        self._session, self._answered, self._progress = session, answered, progress
        self._dispatcher: Dispatcher | None = None
        if workers is not None:
            self._dispatcher = Dispatcher(
                session,
                workers.pool,
                workers.names,
                take_answered=answered.take if len(answered) else None,
                progress=progress,
                on_note=on_note,
                on_shares=on_shares,
            )

    def rows(self, inputs: Inputs) -> Generator[Row, None, None]:
        """Yield the rows of a run; see `pipeline.run` and `Dispatcher.rows`."""
        if self._dispatcher is not None:
            return self._dispatcher.rows(inputs.jobs)
        return self._session.rows(inputs, take_answered=self._answered.take, progress=self._progress)

    def shares(self) -> list[WorkerShare]:
        """Return what each worker did, where there were several."""
        return self._dispatcher.shares() if self._dispatcher is not None else []


def dry_run(
    documents: Sequence[str],
    questions: str | Sequence[str],
    settings: RunSettings,
    *,
    on_note: Callable[[str], None] = lambda _: None,
    open_with: OpenEngine = open_engine,
) -> DryRun:
    """Go through a batch without weights: every page is prepared here, nothing is asked or written.

    Raises:
        IdeficsCliError: what a run would be refused for.

    """
    inputs = read_inputs(documents, questions, settings)
    settings = _for_inputs(settings, inputs)
    workers = open_workers(settings, inputs.columns, open_with, on_note, is_dry=True)
    if workers is not None:
        workers.pool.close(is_done=False)
    info = workers.info if workers is not None else None
    engine = NullEngine(info or open_engine_of(settings, open_with).info)
    progress, failures = Progress(), Counter[str]()
    with Session(settings=settings, engine=engine) as session:
        paths = inputs.paths + (session.examples.paths if session.examples else [])
        check_output(settings.output, inputs.columns, session.setting_values, paths)
        earlier = read_state(settings.output, inputs.columns, session.setting_values)
        for row in session.rows(inputs, take_answered=earlier.answered.take, progress=progress):
            if row.status == "failed":
                failures[": ".join(filter(None, (row.document, row.error)))] += 1
    return DryRun(progress, failures, earlier.seconds_per_row, inputs.notes, workers.words if workers else "")


class NullEngine:
    """Stands for an engine whose weights are not loaded: answers at once, with nothing."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def start(self) -> None:
        """See `Engine`."""

    def submit(self, request: Request) -> Future[Answer]:  # noqa: ARG002 - the signature of `Engine`
        """See `Engine`."""
        future: Future[Answer] = Future()
        future.set_result(Answer())
        return future

    def close(self) -> None:
        """See `Engine`."""


def _check_failures(settings: RunSettings, stats: RunStats, row: Row) -> None:
    if settings.max_failures and settings.max_failures.are_exceeded(stats.failed, stats.rows):
        raise TooManyFailuresError(
            f"stopped: {stats.failed} of {stats.rows} rows failed, more than --max-failures allows; "
            f"the last: {row.error}"
        )
