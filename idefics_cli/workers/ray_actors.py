"""Workers that are actors of a Ray cluster, one for each GPU or part of one.

Ray places them, and says when one is lost. What a lost one held and what comes in its place is decided here as for
processes of one machine: an actor is never restarted by Ray, which would wait for the GPU of a machine that is gone.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from idefics_cli.engine.base import EngineInfo
from idefics_cli.errors import ModelError
from idefics_cli.workers.messages import Ended, Joined, Lost, Opened, Report, ToWorker, WorkerSpec
from idefics_cli.workers.ray_calls import Actor, ActorCalls
from idefics_cli.workers.ray_cluster import RayCluster
from idefics_cli.workers.ray_documents import OutgoingDocuments
from idefics_cli.workers.ray_worker import CONCURRENCY_GROUPS, Place, RayWorker

_LOOK_EVERY = 5.0  # seconds, at how many GPUs there are
_SAY_EVERY = 60.0
_MANY = 16  # workers whose every row may be a call
_MOST_FAILED_STARTS = 3

_Event = tuple[int, Report | Joined | Lost]


class RayPool:
    """The actors of a run. One thread uses it; `wake` may be called from any."""

    def __init__(
        self,
        cluster: RayCluster,
        spec: WorkerSpec,
        count: int,
        *,
        share: float,
        grows: bool,
        on_note: Callable[[str], None],
    ) -> None:
        """Take what workers run; none is started yet.

        Args:
            cluster: where.
            spec: what each runs.
            count: of workers.
            share: of a GPU for each; 0 for workers on the CPU, which have a core.
            grows: whether there are more workers when the cluster has more GPUs.
            on_note: told what is waited for.

        """
        import ray

        self._ray: Any = ray
        self._cluster, self._spec, self.count = cluster, spec, count
        self._share, self._grows, self._on_note = share, grows, on_note
        self._actors: dict[int, Actor] = {}
        self._calls = ActorCalls(cluster)
        self._early: deque[_Event] = deque()
        self._looked = self._said = time.monotonic()
        options = {"concurrency_groups": CONCURRENCY_GROUPS, "max_restarts": 0, "max_task_retries": 0}
        self._remote = ray.remote(num_gpus=share, num_cpus=0 if share else 1, **options)(RayWorker)

    def engine_info(self) -> EngineInfo:
        """Start all workers, and wait until one has opened the checkpoint: the driver need not have a GPU, or it.

        Raises:
            IdeficsCliError: what ended a worker before.

        """
        for index in range(self.count):
            self.start(index)
        if not self._grows and self._share:
            self._cluster.request([{"GPU": self._share}] * self.count)
        failed = 0
        while True:
            events = self._events(_LOOK_EVERY)
            self._early += events
            for index, event in events:
                why = event.why if isinstance(event, Lost) else ""
                for one in event.events if isinstance(event, Report) else ():
                    if isinstance(one, Opened) and one.info is not None:
                        return one.info
                    if isinstance(one, Ended):
                        if one.error is not None:
                            raise one.error
                        why = one.last_line
                if why:
                    failed += not (isinstance(event, Lost) and event.is_machine)
                    if failed == _MOST_FAILED_STARTS:
                        raise ModelError(f"worker {index + 1}: lost ({why}); no worker could start")
                    self._early = deque(early for early in self._early if early[0] != index)
                    self.end(index)
                    self.start(index)

    def start(self, index: int) -> bool:
        """See `WorkerPool`: it takes jobs when Ray has found a place for it."""
        if index not in self._actors:
            handle = self._remote.remote(self._spec, str(Path.cwd()), self._share, self.gather_s)
            take = handle.take.options(concurrency_group="messages")
            reports = handle.reports.options(concurrency_group="reports")
            documents = OutgoingDocuments(as_bytes=self._spec.settings.workers.send_documents)
            self._actors[index] = Actor(index, handle, take, reports, documents)
            self._calls.place(self._actors[index])
        return False

    @property
    def gather_s(self) -> float:
        """Seconds for which rows wait for others: with it workers make a thousand calls a second together at most."""
        return 0.0 if self.count < _MANY else min(1.0, self.count / 500)

    def send(self, index: int, message: ToWorker) -> None:
        """See `WorkerPool`."""
        actor = self._actors.get(index)
        if actor is not None and actor.node_id:
            self._calls.send(actor, message)

    def events(self, timeout: float | None) -> list[_Event]:
        """See `WorkerPool`."""
        if self._early:
            early = list(self._early)
            self._early.clear()
            return early
        return self._events(_LOOK_EVERY if timeout is None else min(timeout, _LOOK_EVERY))

    def wake(self) -> None:
        """See `WorkerPool`."""
        self._calls.wake()

    def end(self, index: int) -> str:
        """See `WorkerPool`."""
        actor = self._actors.pop(index, None)
        if actor is not None:
            with contextlib.suppress(Exception):  # it may be lost already, with its machine
                self._ray.kill(actor.handle)
        return "killed"

    def close(self, *, is_done: bool) -> None:  # noqa: ARG002 - the signature of `WorkerPool`
        """See `WorkerPool`; leaves the cluster."""
        for index in list(self._actors):
            self.end(index)
        self._cluster.close()

    def _events(self, timeout: float) -> list[_Event]:
        self._look_at_cluster()
        events: list[_Event] = []
        for actor, result in self._calls.results(timeout):
            if self._actors.get(actor.index) is actor:  # not ended since
                events += self._events_of(actor, result)
        return events

    def _events_of(self, actor: Actor, result: Any) -> list[_Event]:
        """Return what the result of an actor's call means for the run."""
        index = actor.index
        if isinstance(result, Place):
            return [(index, self._joined(actor, result))]
        if isinstance(result, Lost) or not result:
            self.end(index)
            return [(index, result or Lost("it ended"))]
        self._calls.fetch(actor)
        return [(index, report) for report in result]

    def _joined(self, actor: Actor, place: Place) -> Joined:
        here = version("idefics-cli")
        if place.version != here:
            words = f"node {place.address} has idefics-cli {place.version}, and the driver {here}"
            raise ModelError(f"{words}: install the same")
        actor.node_id = place.node_id
        self._calls.fetch(actor)
        if all(one.node_id for one in self._actors.values()):
            self._cluster.request([])
        return Joined(f"worker {actor.index + 1} ({place.address}{f', GPU {place.gpu}' if place.gpu else ''})")

    def _look_at_cluster(self) -> None:
        """Start workers on GPUs that have come, and say what is waited for."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        if self._grows:
            most = self._cluster.gpus * self._spec.settings.workers.workers_per_gpu
            for index in range(self.count, most):
                self.start(index)
            self.count = max(self.count, most)
        waiting = sum(not actor.node_id for actor in self._actors.values())
        if waiting == len(self._actors) and now - self._said > _SAY_EVERY:
            self._said = now
            what = f"{self._share:g} of a GPU" if self._share else "a core"
            self._on_note(
                f"{waiting:,} workers wait for {what} each: the cluster has {self._cluster.gpus} GPUs, "
                f"{self._cluster.free_gpus:g} of them free"
            )
