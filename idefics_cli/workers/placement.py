"""Which workers a run has on this machine: a device, page processes and threads for each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from idefics_cli.config import Device, Gpus, RunSettings, available_cores
from idefics_cli.engine.device import compute_capabilities
from idefics_cli.errors import ModelError, UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Placement:
    """One worker of this machine."""

    name: str
    """cuda:0, or worker 1 where it runs on the CPU."""
    settings: RunSettings
    """With its own device and its share of the page processes."""
    environment: Mapping[str, str]
    """Variables that must be set before torch is imported."""


def placements(gpus: Gpus, settings: RunSettings) -> list[Placement]:
    """Return the workers that `--gpus` asks for; each has its share of the cores.

    Raises:
        ModelError: there are not so many GPUs, or none.
        UsageError: it contradicts `--device`.

    """
    device = settings.model.device
    if device.kind == "mps" or device.index is not None:
        raise UsageError(f"--gpus and --device {device} exclude each other: --gpus 0,2,3 names GPUs, --gpus N takes N")
    if device.kind == "cpu":
        if gpus.count is None:
            raise UsageError(f"--gpus {gpus} with --device cpu: give the number of workers, for example --gpus 2")
        if settings.model.gpu_memory is not None:
            raise UsageError("--gpu-memory is for CUDA GPUs, and --device cpu takes none: leave it out")
        names, visible = [f"worker {number}" for number in range(1, gpus.count + 1)], [""] * gpus.count
    else:
        indexes = _indexes(gpus)
        names, visible = [f"cuda:{index}" for index in indexes], _visible(indexes)
    cores = max(1, available_cores() // len(names))
    workers = max(1, settings.pages.workers // len(names)) if settings.pages.workers else min(16, cores)
    here = dataclasses.replace(
        settings,
        pages=dataclasses.replace(settings.pages, workers=workers),
        model=dataclasses.replace(settings.model, device=Device.CPU if device.kind == "cpu" else Device.CUDA),
        questions=dataclasses.replace(settings.questions, limit=None),
    )
    threads = {} if _THREADS in os.environ else {_THREADS: str(cores)}
    return [
        Placement(name, here, threads if device.kind == "cpu" else {**threads, _VISIBLE: one})
        for name, one in zip(names, visible, strict=True)
    ]


def describe(workers: list[Placement]) -> str:
    """Say which workers there are, for a user."""
    pages = workers[0].settings.pages.worker_count
    names = ", ".join(worker.name for worker in workers)
    return f"{len(workers)} ({names}), {pages} page process{'es' * (pages != 1)} each"


def _indexes(gpus: Gpus) -> list[int]:
    """Return the indexes of GPUs as torch counts them."""
    count = len(compute_capabilities())
    if not count:
        raise ModelError(
            f"--gpus {gpus}: no usable CUDA device here; see idefics-cli doctor, or --device cpu --gpus N for N "
            "workers on the CPU"
        )
    wanted = list(gpus.indexes) or list(range(count if gpus.count is None else gpus.count))
    if max(wanted) >= count:
        there = "1 GPU (index 0)" if count == 1 else f"{count} GPUs (indexes 0 to {count - 1})"
        raise ModelError(f"--gpus {gpus}: here {'is' if count == 1 else 'are'} {there}; --gpus all takes all")
    return wanted


def _visible(indexes: list[int]) -> list[str]:
    """Return what makes each GPU the only one that a process sees."""
    given = os.environ.get(_VISIBLE)
    names = [name.strip() for name in given.split(",")] if given else None
    return [names[index] if names else str(index) for index in indexes]
