"""Simulates a cluster of workers and the process that drives them: discrete events, a clock of its own, no Ray.

    python tools/simulate_cluster.py [--nodes 64] [--gpus 8] [--rows 500000] [--losses 0.0] [--unordered]

The supervisor is the real one: it hands out jobs, takes rows, keeps their order and takes back what lost nodes held.
Its own time is measured. Workers are numbers: each answers so many rows a second, and is away for a while once its node
is lost. What a row costs the driver besides is measured by `measure_driver.py`, what resuming costs by
`measure_resume.py`; both are constants here.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import resource
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from idefics_cli.records import Document, Job, Question, Row
from idefics_cli.workers.messages import Work
from idefics_cli.workers.supervisor import Supervisor

DRIVER_US = 38.0
"""Microseconds of the driver's CPU time a row, supervisor included: `measure_driver.py`, CSV."""
MEASURED_WORKERS = 2
LINE_BYTES = 330
"""Of a row in CSV."""
RESUME_S, RESUME_GB = 6.1e-6, 47e-9
"""Seconds of one core and gigabytes of memory for each row that is read again: 10 million of CSV take 61 s, 0.47 GB."""


@dataclass(frozen=True)
class Cluster:
    """What is simulated."""

    nodes: int = 64
    gpus: int = 8
    rows: int = 500_000
    rows_per_s: float = 13.5
    """Of a worker: split pages of the 8B model on one H200, a question a page."""
    window: int = 192
    """Jobs that a worker holds: 128 requests of its engine and 4 for each of 16 page processes."""
    per_document: int = 1
    """Questions about each document."""
    losses_per_hour: float = 0.0
    """Of each node."""
    away_s: float = 180.0
    """Until a lost node's workers have loaded the model again."""
    is_ordered: bool = True
    seed: int = 0


@dataclass
class Figures:
    """What came of it."""

    seconds: float = 0.0
    rows: int = 0
    answered: int = 0
    """Answers that were computed: more than rows where lost workers had answered in part."""
    lost_nodes: int = 0
    condemned: int = 0
    most_waiting: int = 0
    """Rows that were held at most until those before them came."""
    most_pending: int = 0
    """Jobs that were not done, at most."""
    idle_s: float = 0.0
    """Seconds that workers which were there had nothing to do, over all of them."""
    supervisor_s: float = 0.0
    """Of this machine's time in the supervisor."""
    order: list[int] = field(default_factory=list)
    """Jobs by number, as their rows left."""


class Simulation:
    """One run."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.figures = cluster, Figures()
        count = cluster.nodes * cluster.gpus
        self._supervisor = Supervisor(
            [f"worker {number}" for number in range(count)], window=cluster.window, is_ordered=cluster.is_ordered
        )
        self._held: list[deque[Work]] = [deque() for _ in range(count)]
        self._starts = [0] * count  # how often each was started: events of an earlier start are void
        self._idle_since: list[float | None] = [0.0] * count
        self._events: list[tuple[float, int, str, int, int]] = []
        self._ids = itertools.count()
        self._random = random.Random(cluster.seed)
        self._jobs = iter(range(cluster.rows))
        self._now = 0.0

    def run(self) -> Figures:
        """Run until every row has left."""
        for node in range(self.cluster.nodes):
            self._expect_loss(node)
        for index in range(len(self._held)):
            self._supervisor.open(index)
            self._supervisor.workers[index].is_loaded = True
        self._hand_out()
        while self.figures.rows < self.cluster.rows:
            self._now, _, what, index, start = heapq.heappop(self._events)
            if what == "answer" and start == self._starts[index]:
                self._answer(index)
            elif what == "loss":
                self._lose(index)
            elif what == "start":
                self._supervisor.open(index)
                self._supervisor.workers[index].is_loaded = True
                self._idle_since[index] = self._now
                self._hand_out()
        self.figures.seconds = self._now
        return self.figures

    def _answer(self, index: int) -> None:
        work = self._held[index].popleft()
        self.figures.answered += 1
        started = time.thread_time()
        self._supervisor.add_row(work.number, _row(work))
        self._supervisor.finish(work.number)
        self.figures.supervisor_s += time.thread_time() - started
        if self._held[index]:
            self._expect_answer(index)
        else:
            self._idle_since[index] = self._now
        self._hand_out()

    def _hand_out(self) -> None:
        started = time.thread_time()
        for row in self._supervisor.rows():
            self.figures.rows += 1
            self.figures.order.append(int(row.key, 16))
        self.figures.most_waiting = max(self.figures.most_waiting, self.figures.answered - self.figures.rows)
        given = list(self._supervisor.assignments(self._next_job))
        self.figures.supervisor_s += time.thread_time() - started
        for index, work in given:
            idle_since = self._idle_since[index]
            self._held[index].append(work)
            if idle_since is not None:
                self.figures.idle_s += self._now - idle_since
                self._idle_since[index] = None
                self._expect_answer(index)
        self.figures.condemned += len(self._supervisor.condemned)
        pending = sum(map(len, self._held)) if given else 0
        self.figures.most_pending = max(self.figures.most_pending, pending)

    def _next_job(self) -> Job | None:
        number = next(self._jobs, None)
        if number is None:
            return None
        name = f"{number // self.cluster.per_document}.pdf"
        return Job(Question(f"{number}", f"q:{number}"), Document(name, name))

    def _expect_answer(self, index: int) -> None:
        seconds = self._random.gammavariate(4, 0.25) / self.cluster.rows_per_s
        self._expect(seconds, "answer", index)

    def _expect_loss(self, node: int) -> None:
        if self.cluster.losses_per_hour:
            self._expect(self._random.expovariate(self.cluster.losses_per_hour / 3600), "loss", node)

    def _expect(self, seconds: float, what: str, index: int) -> None:
        start = self._starts[index] if what == "answer" else 0
        heapq.heappush(self._events, (self._now + seconds, next(self._ids), what, index, start))

    def _lose(self, node: int) -> None:
        self.figures.lost_nodes += 1
        for index in range(node * self.cluster.gpus, (node + 1) * self.cluster.gpus):
            if self._supervisor.workers[index].is_open:
                self._supervisor.lose(index, is_blameless=True)
                self._starts[index] += 1
                self._held[index].clear()
                self._idle_since[index] = None
                self._expect(self.cluster.away_s, "start", index)
        self._expect_loss(node)
        self._hand_out()


def _row(work: Work) -> Row:
    return Row(
        work.job.question.text, "1", "What is the total?", "12,345.67 EUR", 0.9876, "ok", "", "", "", {}, "pdfium",
        True, 5, 371, 8, 32, 12.34, 5.67, 89.01, 23.45, 67.89, 345.67, "2026-11-21T03:04:05Z", "m", "s",
        f"{work.number:032x}",
    )  # fmt: skip


def report(cluster: Cluster, figures: Figures) -> Iterator[str]:
    """Say what the figures mean for the driver."""
    workers, rate = cluster.nodes * cluster.gpus, figures.rows / figures.seconds
    supervisor_us = figures.supervisor_s / figures.rows * 1e6
    driver_us = DRIVER_US + max(0.0, supervisor_us - _measured_supervisor_us())
    yield f"{workers} workers, {figures.rows:,} rows in {figures.seconds:,.0f} s of its clock: {rate:,.0f} rows/s"
    yield f"workers idle {figures.idle_s / figures.seconds / workers:.1%} of the time"
    yield f"lost nodes {figures.lost_nodes}, answers computed twice {figures.answered - figures.rows:,}"
    yield f"most jobs with workers {figures.most_pending:,}, most rows that waited for others {figures.most_waiting:,}"
    yield f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory for jobs and rows"
    yield f"supervisor {supervisor_us:.1f} us a row; driver {driver_us:.0f} us: {1e6 / driver_us:,.0f} rows/s at most"
    yield f"of that this cluster takes {rate * driver_us / 1e6:.0%}"
    yield f"journal {rate * LINE_BYTES / 1e6:.2f} MB/s, {rate * LINE_BYTES * 86.4e3 / 1e9:,.0f} GB a day"
    billion = 1e9
    yield (
        f"a billion rows: {billion / rate / 3600:,.0f} h to answer, {billion * LINE_BYTES / 1e9:,.0f} GB; to resume "
        f"{billion * RESUME_S / 60:,.0f} min of one core and {billion * RESUME_GB:,.0f} GB of memory"
    )


def _measured_supervisor_us() -> float:
    """Return what the supervisor takes a row with as few workers as `measure_driver.py` has."""
    small = Cluster(nodes=1, gpus=MEASURED_WORKERS, rows=20_000)
    return Simulation(small).run().supervisor_s / small.rows * 1e6


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--losses", type=float, default=0.0, help="of each node in an hour")
    parser.add_argument("--questions", type=int, default=1, help="about each document")
    parser.add_argument("--unordered", action="store_true")
    given = parser.parse_args()
    cluster = Cluster(
        given.nodes,
        given.gpus,
        given.rows,
        losses_per_hour=given.losses,
        per_document=given.questions,
        is_ordered=not given.unordered,
    )
    for line in report(cluster, Simulation(cluster).run()):
        print(line)


if __name__ == "__main__":
    _main()
