"""What runs in a Ray actor: a worker whose messages come, and whose reports are fetched, as calls of the actor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version

from idefics_cli.config import available_cores
from idefics_cli.workers.messages import JobDone, Report, RowDone, ToWorker, WorkerSpec
from idefics_cli.workers.ray_documents import IncomingDocuments

CONCURRENCY_GROUPS = {"messages": 1, "reports": 1}
"""Threads by the group of calls: one each, so that calls of a group run in the order in which they were made."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor runs, and with what."""

    node_id: str
    address: str
    gpu: str
    """Its index on the node; empty where it has none."""
    version: str
    """Of this package."""


class RayWorker:
    """A worker as an actor; `ray_actors` makes it one."""

    def __init__(self, spec: WorkerSpec, folder: str, share: float, gather_s: float = 0.0) -> None:
        """Begin to open the checkpoint.

        Args:
            spec: what to run; its page processes are those of this worker, None for a share of the node's cores.
            folder: of the driver, where relative paths of the settings begin, if it is here too.
            share: of a GPU; 0 for a worker on the CPU.
            gather_s: seconds for which rows wait for others, so that hundreds of workers make few calls.

        """
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._gather_s = gather_s
        cores = _cores(share)
        os.environ["OMP_NUM_THREADS"] = str(cores)  # torch is not imported yet
        pages = dataclasses.replace(spec.settings.pages, workers=spec.settings.pages.workers or min(16, cores))
        spec = dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, pages=pages))
        self._messages: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(spec,), name="worker", daemon=True).start()

    def place(self) -> Place:
        """Return where it runs."""
        import ray

        context = ray.get_runtime_context()
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), gpus, version("idefics-cli"))

    def take(self, message: ToWorker) -> None:
        """Take a message."""
        self._messages.put(message)

    def reports(self) -> list[Report]:
        """Wait for reports and return all that there are; none where the worker has ended and nothing is left."""
        found = [self._reports.get()]
        until = time.monotonic() + self._gather_s
        while _may_wait(found[-1]) and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                found.append(self._reports.get(timeout=left))
        while not self._reports.empty():
            found.append(self._reports.get())
        if None in found:
            self._reports.put(None)
        return [report for report in found if report is not None]

    def _serve(self, spec: WorkerSpec) -> None:
        from idefics_cli.workers.worker import serve

        documents = IncomingDocuments(self._messages, self._reports.put)
        serve(spec, documents.receive, self._reports.put)
        self._reports.put(None)


def _may_wait(report: Report | None) -> bool:
    """Whether nobody waits for an answer to a report."""
    return report is not None and all(isinstance(event, RowDone | JobDone) for event in report.events)


def _cores(share: float) -> int:
    """Return the cores of this worker: on a GPU its share of the node's, on the CPU the one that Ray has counted."""
    if not share:
        return 1
    import ray

    here = ray.get_runtime_context().get_node_id()
    gpus = next((node["Resources"].get("GPU", 1.0) for node in ray.nodes() if node["NodeID"] == here), 1.0)
    return max(1, int(available_cores() / max(1, gpus * int(1 / share + 1e-9))))
