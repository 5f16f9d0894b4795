"""Measures how many rows a second the process that drives workers reads, hands out, takes back and writes.

    python tools/measure_driver.py ROWS [WORKERS] [csv|jsonl]

The workers are processes that answer at once, with rows made beforehand: what is measured is the driver alone, once
it has read the questions file of so many rows over a thousand documents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from idefics_cli.config import Format, ModelSettings, OutputSettings, RunSettings
from idefics_cli.inputs import read_inputs
from idefics_cli.records import Row
from idefics_cli.results.fingerprint import row_key, settings_fingerprint
from idefics_cli.results.lines import RowFormatter
from idefics_cli.results.output import open_output
from idefics_cli.results.stats import RunStats
from idefics_cli.session import Session
from idefics_cli.workers.boxes import Inbox, Outbox
from idefics_cli.workers.dispatch import Dispatcher
from idefics_cli.workers.messages import JobDone, Lost, Opened, Report, RowDone, ToWorker

_DOCUMENTS = 1000


def _row(settings: str) -> Row:
    return Row(
        "<document>", "1", "<question>", "12,345.67 EUR", 0.9876, "ok", "", "", "<id>", {}, "pdfium", True, 5, 371,
        8, 32, 12.34, 5.67, 89.01, 23.45, 67.89, 345.67, "2026-11-21T03:04:05Z", "HuggingFaceM4/idefics2-8b",
        settings, "<key>",
    )  # fmt: skip


def _work(connection: Connection, values: dict[str, str], form: Format) -> None:
    outbox = Outbox(connection.send)
    outbox.put(Opened(values))
    inbox = Inbox(connection.recv)
    row = _row(settings_fingerprint(values))
    formatter = RowFormatter(form, ())
    for work in inbox.works():
        question, document = work.job.question, work.job.document
        assert document is not None
        key = row_key(document.name, "1", question.text, question.id)
        done = dataclasses.replace(row, document=document.name, question=question.text, id=question.id, key=key)
        outbox.put(RowDone(work.number, formatter.formatted(done)))
        outbox.put(JobDone(work.number))
    outbox.close()


class NullPool:
    """Workers that answer at once; see `WorkerPool`."""

    def __init__(self, values: dict[str, str], form: Format) -> None:
        self._values, self._form = values, form
        self._connections: dict[int, Connection] = {}
        self._processes: list[multiprocessing.Process] = []
        self._woken, self._waker = multiprocessing.Pipe(duplex=False)

    def start(self, index: int) -> bool:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.Process(target=_work, args=(there, self._values, self._form), daemon=True)
        process.start()
        self._processes.append(process)
        self._connections[index] = here
        return True

    def send(self, index: int, message: ToWorker) -> None:
        self._connections[index].send(message)

    def events(self, timeout: float | None) -> list[tuple[int, Report | Lost]]:
        by_connection = {connection: index for index, connection in self._connections.items()}
        found: list[tuple[int, Report | Lost]] = []
        for connection in wait([*by_connection, self._woken], timeout):
            assert isinstance(connection, Connection)
            if connection is self._woken:
                connection.recv_bytes()
            else:
                found.append((by_connection[connection], connection.recv()))
        return found

    def wake(self) -> None:
        self._waker.send_bytes(b"")

    def end(self, index: int) -> str:
        self._processes[index].terminate()
        return "it was ended"

    def close(self, *, is_done: bool) -> None:  # noqa: ARG002 - the signature of `WorkerPool`
        for process in self._processes:
            process.terminate()


def _main() -> None:
    rows, workers = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8
    form = Format(sys.argv[3] if len(sys.argv) > 3 else "csv")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number in range(_DOCUMENTS):
            (Path(folder) / f"{number:04}.pdf").touch()
        questions = Path(folder) / "questions.csv"
        with questions.open("w") as stream:
            stream.write("id,document,question\n")
            for number in range(rows):
                stream.write(
                    f"{number},{number * _DOCUMENTS // rows:04}.pdf,What is the total of line {number % 40}?\n"
                )
        output = OutputSettings(Path(folder) / f"answers.{form}", form)
        settings = RunSettings(model=ModelSettings("tiny"), output=output)
        started = time.monotonic()
        inputs = read_inputs([], str(questions), settings)
        print(f"{rows:,} questions checked in {time.monotonic() - started:.1f} s")
        session = stack.enter_context(Session(settings=settings))
        pool = NullPool(dict(session.setting_values), form)
        dispatcher = Dispatcher(session, pool, [f"null {index}" for index in range(workers)])
        stats, started, cpu = RunStats(), time.monotonic(), time.process_time()
        with open_output(output, inputs.columns, sys.stdout, session.setting_values) as out:
            for row in dispatcher.rows(inputs.jobs):
                out.write(row)
                stats.add(row)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        print(
            f"{stats.rows:,} rows of {workers} workers in {seconds:.1f} s: {stats.rows / seconds:,.0f} rows/s, "
            f"{stats.rows / cpu:,.0f} rows per second of the driver's own CPU time"
        )
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory")


if __name__ == "__main__":
    _main()
