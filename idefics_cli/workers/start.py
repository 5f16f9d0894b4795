"""Opens the workers that the settings ask for: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from idefics_cli.config import Device, RunSettings
from idefics_cli.engine.base import EngineInfo, OpenEngine
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.workers.children import ChildPool
from idefics_cli.workers.messages import WorkerSpec
from idefics_cli.workers.placement import describe, placements
from idefics_cli.workers.pool import WorkerPool
from idefics_cli.workers.ray_actors import RayPool
from idefics_cli.workers.ray_cluster import RayCluster


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a run, opened."""

    pool: WorkerPool
    names: Sequence[str]
    words: str
    """Which they are, for a user."""
    info: EngineInfo | None = None
    """Of their engine, where it need not be one that can be opened here."""


def open_workers(
    settings: RunSettings,
    columns: Sequence[str],
    open_with: OpenEngine,
    on_note: Callable[[str], None],
    *,
    is_dry: bool = False,
) -> Workers | None:
    """Open the workers of a run; None where this process answers.

    Args:
        settings: of the run.
        columns: the user's own.
        open_with: opens the checkpoint in each worker; a function of a module.
        on_note: told what is waited for.
        is_dry: whether they only say what they are: of a cluster one is started, for what it knows of its engine.

    Raises:
        IdeficsCliError: there are no such GPUs, there is no such cluster, or what ended its workers.
        UsageError: the options contradict each other.

    """
    if settings.workers.ray is not None:
        spec = WorkerSpec(settings, open_with, tuple(columns), tells_engine=True)
        return _actors(settings.workers.ray, spec, on_note, is_dry=is_dry)
    if settings.workers.gpus is None:
        return None
    places = placements(settings.workers.gpus, settings)
    pool = ChildPool([(WorkerSpec(place.settings, open_with, tuple(columns)), place.environment) for place in places])
    return Workers(pool, [place.name for place in places], describe(places))


def _actors(address: str, spec: WorkerSpec, on_note: Callable[[str], None], *, is_dry: bool) -> Workers:
    settings = spec.settings
    share = _check(settings)
    cluster = RayCluster(address)
    try:
        wanted = settings.workers.gpus.count if settings.workers.gpus is not None else None
        count = wanted or cluster.gpus
        if not count:
            raise ModelError(
                f"--ray {address}: the cluster has no GPU now; --gpus N waits for N of one that grows, --device cpu "
                "--gpus N takes cores"
            )
        count *= settings.workers.workers_per_gpu
        here = dataclasses.replace(
            settings,
            model=dataclasses.replace(settings.model, device=Device.CUDA if share else Device.CPU),
            questions=dataclasses.replace(settings.questions, limit=None),
        )
        nodes = "; ".join(map(str, cluster.nodes()))
        words = f"{count:,} of the Ray cluster {address} ({nodes})"
        started = 1 if is_dry else count
        grows = wanted is None and not is_dry
        there = dataclasses.replace(spec, settings=here)
        pool = RayPool(cluster, there, started, share=share, grows=grows, on_note=on_note)
    except BaseException:
        cluster.close()
        raise
    try:
        info = pool.engine_info()
    except BaseException:
        pool.close(is_done=False)
        raise
    return Workers(pool, [f"worker {number}" for number in range(1, pool.count + 1)], words, info)


def _check(settings: RunSettings) -> float:
    """Return the share of a GPU that an actor takes, 0 on the CPU.

    Raises:
        UsageError: the options contradict each other.

    """
    device, workers = settings.model.device, settings.workers
    if device.kind == "mps" or device.index is not None:
        raise UsageError(f"--ray and --device {device} exclude each other: Ray chooses the GPUs")
    if workers.send_documents and settings.questions.examples is not None:
        raise UsageError(
            "--send-documents does not send those of --examples: put them into a folder that all nodes see"
        )
    if device.kind == "cpu":
        if workers.gpus is None or workers.gpus.count is None:
            raise UsageError(
                "--ray with --device cpu: give the number of workers, for example --gpus 2; each has a core"
            )
        if workers.gpus_per_worker is not None:
            raise UsageError("--gpus-per-worker with --device cpu: there workers take no GPU")
        if settings.model.gpu_memory is not None:
            raise UsageError("--gpu-memory is for CUDA GPUs, and --device cpu takes none: leave it out")
        return 0.0
    share = workers.gpus_per_worker or 1.0
    if share < 1 and settings.model.gpu_memory is None:
        raise UsageError(
            f"--gpus-per-worker {share:g}: workers share a GPU, and each would take all memory that is free: give the "
            "GB of each with --gpu-memory"
        )
    return share
