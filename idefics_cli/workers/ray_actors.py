"""Workers that are actors of a Ray cluster, one for each GPU or part of one.

Ray places them, and says when one is lost. What a lost one held and what comes in its place is decided here as for
processes of one machine: an actor is never restarted by Ray, which would wait for the GPU of a machine that is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from idefics_cli.engine.base import EngineInfo
from idefics_cli.errors import ModelError
from idefics_cli.workers.messages import Ended, Joined, Lost, Opened, Report, ToWorker, WorkerSpec
from idefics_cli.workers.ray_cluster import RayCluster
from idefics_cli.workers.ray_documents import OutgoingDocuments
from idefics_cli.workers.ray_worker import CONCURRENCY_GROUPS, Place, RayWorker

_LOOK_EVERY = 5.0  # seconds, at how many GPUs there are
_SAY_EVERY = 60.0
_MOST_FAILED_STARTS = 3

_Event = tuple[int, Report | Joined | Lost]


@dataclasses.dataclass(slots=True, eq=False)
class _Actor:
    """An actor, as the driver sees it."""

    handle: Any
    take: Any
    reports: Any
    """Its methods."""
    documents: OutgoingDocuments
    node_id: str = ""
    """Empty before it has its place."""


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
        self._resources = {"GPU": share} if share else {"CPU": 1.0}
        self._actors: dict[int, _Actor] = {}
        self._found: queue.SimpleQueue[tuple[int, _Actor, Any] | None] = queue.SimpleQueue()
        self._early: deque[_Event] = deque()
        self._looked = self._said = time.monotonic()
        groups = {"concurrency_groups": CONCURRENCY_GROUPS, "max_restarts": 0, "max_task_retries": 0}
        self._remote = ray.remote(num_gpus=share, num_cpus=0 if share else 1, **groups)(RayWorker)

    def engine_info(self) -> EngineInfo:
        """Start all workers, and wait until one has opened the checkpoint: the driver need not have a GPU, or it.

        Raises:
            IdeficsCliError: what ended a worker before.

        """
        for index in range(self.count):
            self.start(index)
        if not self._grows and self._share:
            self._cluster.request([self._resources] * self.count)
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
            folder = str(Path.cwd())
            handle = self._remote.remote(self._spec, folder, self._share)
            documents = OutgoingDocuments(as_bytes=self._spec.settings.workers.send_documents)
            take = handle.take.options(concurrency_group="messages")
            reports = handle.reports.options(concurrency_group="reports")
            actor = self._actors[index] = _Actor(handle, take, reports, documents)
            self._watch(index, actor, handle.place.remote())
        return False

    def send(self, index: int, message: ToWorker) -> None:
        """See `WorkerPool`."""
        actor = self._actors.get(index)
        if actor is None or not actor.node_id:
            return
        self._watch(index, actor, actor.take.remote(actor.documents.prepared(message)))

    def events(self, timeout: float | None) -> list[_Event]:
        """See `WorkerPool`."""
        if self._early:
            early = list(self._early)
            self._early.clear()
            return early
        return self._events(timeout)

    def wake(self) -> None:
        """See `WorkerPool`."""
        self._found.put(None)

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

    def _watch(self, index: int, actor: _Actor, call: Any) -> None:
        """Let the result of a call, or what it failed with, be found by `events`."""

        def found(future: Future[Any]) -> None:
            self._found.put((index, actor, future.exception() or future.result()))

        call.future().add_done_callback(found)

    def _events(self, timeout: float | None) -> list[_Event]:
        self._look_at_cluster()
        waits = [seconds for seconds in (timeout, _LOOK_EVERY) if seconds is not None]
        events: list[_Event] = []
        try:
            found = [self._found.get(timeout=min(waits))]
        except queue.Empty:
            return events
        while not self._found.empty():
            found.append(self._found.get())
        for entry in found:
            if entry is not None:
                events += self._event(*entry)
        return events

    def _event(self, index: int, actor: _Actor, result: Any) -> list[_Event]:
        """Return what the result of a call means for the run."""
        if self._actors.get(index) is not actor or result is None:  # ended since; or a message that was taken
            return []
        if isinstance(result, Exception):
            is_machine = self._is_lost_machine(actor, result)
            self.end(index)
            return [(index, Lost(_words(result), is_machine))]
        if isinstance(result, Place):
            return [self._placed(index, actor, result)]
        if not result:
            self.end(index)
            return [(index, Lost("it ended"))]
        self._fetch(index, actor)
        return [(index, report) for report in result]

    def _placed(self, index: int, actor: _Actor, place: Place) -> _Event:
        from importlib.metadata import version

        here = version("idefics-cli")
        if place.version != here:
            raise ModelError(
                f"node {place.address} has idefics-cli {place.version}, the driver {here}: install the same"
            )
        actor.node_id = place.node_id
        self._fetch(index, actor)
        if all(one.node_id for one in self._actors.values()):
            self._cluster.request([])
        return index, Joined(f"worker {index + 1} ({place.address}{f', GPU {place.gpu}' if place.gpu else ''})")

    def _fetch(self, index: int, actor: _Actor) -> None:
        self._watch(index, actor, actor.reports.remote())

    def _is_lost_machine(self, actor: _Actor, error: Exception) -> bool:
        if getattr(error, "preempted", False) or "its node has died" in str(error):
            return True
        with contextlib.suppress(Exception):
            return bool(actor.node_id) and actor.node_id not in {node.id for node in self._cluster.nodes()}
        return False

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


def _words(error: Exception) -> str:
    """Return the last line of what Ray says that tells why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.lower().startswith("the actor is dead because")), None)
    return (why or (lines[-1] if lines else type(error).__name__))[:300]
