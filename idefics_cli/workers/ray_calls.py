"""Calls of Ray actors: their results are found without asking each, and what a failed one says of its actor."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from concurrent.futures import Future
from typing import Any

from idefics_cli.workers.messages import Lost, ToWorker
from idefics_cli.workers.ray_cluster import RayCluster
from idefics_cli.workers.ray_documents import OutgoingDocuments
from idefics_cli.workers.ray_worker import Place

_ASK_EVERY = 0.5  # seconds, an actor that can't be reached
_MOST_DOUBTED = 60.0


@dataclasses.dataclass(slots=True, eq=False)
class Actor:
    """An actor, as the driver sees it."""

    index: int
    handle: Any
    take: Any
    reports: Any
    """Its methods."""
    documents: OutgoingDocuments
    node_id: str = ""
    """Empty before it has its place."""
    doubted_since: float | None = None
    """Since when it can't be reached, and whether it lives is not known."""


class ActorCalls:
    """Calls that are made, and their results as they come. One thread uses it; `wake` may be called from any."""

    def __init__(self, cluster: RayCluster) -> None:
        import ray

        self._ray: Any = ray
        self._cluster = cluster
        self._found: queue.SimpleQueue[tuple[Actor, Any] | None] = queue.SimpleQueue()
        self._to_ask: list[Actor] = []  # which could not be reached
        self._asked = 0.0

    def place(self, actor: Actor) -> None:
        """Ask an actor for its `Place`, which it has once Ray has placed it."""
        self._watch(actor, actor.handle.place.remote())

    def fetch(self, actor: Actor) -> None:
        """Ask an actor for its next reports."""
        self._watch(actor, actor.reports.remote())

    def send(self, actor: Actor, message: ToWorker) -> None:
        """Send an actor a message; its result is None."""
        self._watch(actor, actor.take.remote(actor.documents.prepared(message)))

    def wake(self) -> None:
        """Let `results` return."""
        self._found.put(None)

    def results(self, timeout: float) -> list[tuple[Actor, Any]]:
        """Wait for results, and return all that there are; `Lost` in the place of an error.

        An actor that can't be reached may live, may be on a machine that was lost, or may just have ended: it is asked
        again until one of them is known.
        """
        self._ask_again()
        try:
            found = [self._found.get(timeout=min(timeout, _ASK_EVERY) if self._to_ask else timeout)]
        except queue.Empty:
            return []
        while not self._found.empty():
            found.append(self._found.get())
        results = [(entry[0], self._judged(*entry)) for entry in found if entry is not None]
        return [(actor, result) for actor, result in results if result is not None]

    def _watch(self, actor: Actor, call: Any) -> None:
        def found(future: Future[Any]) -> None:
            self._found.put((actor, future.exception() or future.result()))

        call.future().add_done_callback(found)

    def _judged(self, actor: Actor, result: Any) -> Any:
        if isinstance(result, Place) and actor.doubted_since is not None:
            return Lost("it could not be reached for a time", is_machine=True)  # messages may have gone astray
        if not isinstance(result, Exception):
            return result
        if not isinstance(result, self._ray.exceptions.ActorUnavailableError):
            return Lost(_words(result), self._is_machine(actor, result))
        now = time.monotonic()
        actor.doubted_since = actor.doubted_since or now
        if now - actor.doubted_since > _MOST_DOUBTED:
            return Lost(_words(result), is_machine=True)
        if actor not in self._to_ask:
            self._to_ask.append(actor)
        return None

    def _ask_again(self) -> None:
        now = time.monotonic()
        if self._to_ask and now - self._asked > _ASK_EVERY:
            self._asked, actors, self._to_ask = now, self._to_ask, []
            for actor in actors:
                self.place(actor)

    def _is_machine(self, actor: Actor, error: Exception) -> bool:
        """Whether an actor was lost with its whole node."""
        if getattr(error, "preempted", False) or "its node has died" in str(error):
            return True
        with contextlib.suppress(Exception):
            return bool(actor.node_id) and actor.node_id not in {node.id for node in self._cluster.nodes()}
        return False


def _words(error: Exception) -> str:
    """Return the line of what Ray says that tells why, or else the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("The actor is dead because", "The actor died because"))]
    return ([*reasons, *lines[-1:], type(error).__name__])[0][:300]
