"""Workers on a Ray cluster of three nodes on this machine, whose GPUs are not real, whatever happens to them."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from idefics_cli.batch import BatchResult, dry_run, run
from idefics_cli.config import Gpus, RunSettings, WorkerSettings
from idefics_cli.errors import InputError, ModelError
from idefics_cli.pipeline import Progress
from idefics_cli.records import Row
from tests.test_gpus import in_order, questions, rows_like
from tests.worker_engines import open_fake, open_unloadable, settings

assert questions  # a fixture

pytestmark = pytest.mark.ray
_NODE = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(**_NODE)
    yield cluster
    cluster.shutdown()


def on_cluster(given: RunSettings, cluster: Any, **workers: Any) -> RunSettings:
    device = workers.pop("device", "cuda")
    model = dataclasses.replace(given.model, device=device, gpu_memory=workers.pop("gpu_memory", None))
    return dataclasses.replace(given, model=model, workers=WorkerSettings(ray=cluster.address, **workers))


def answered(questions: Path, given: RunSettings, **more: Any) -> BatchResult:
    return run([], str(questions), given, io.StringIO(), open_with=open_fake, **more)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


def actors() -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if "ray::RayWorker" in " ".join(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_actors_killed_and_nodes_lost_and_added_lose_and_double_nothing(
    cluster: Any, questions: Path, tmp_path: Path
) -> None:
    with questions.open("a") as stream:
        for number in range(1000):
            stream.write(f"{number % 12}.png,slow more {number},m{number}\n")
    answered(questions, settings(tmp_path / "one.csv", None))
    notes: list[str] = []
    events = {100: "kill", 350: "remove", 700: "add"}

    def on_row(row: Row, progress: Progress) -> None:
        what = events.pop(progress.rows, None)
        if what == "kill":
            actors()[0].kill()
        elif what == "remove":
            cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
        elif what == "add":
            cluster.add_node(**_NODE)

    given = on_cluster(settings(tmp_path / "out.csv", None), cluster)
    result = answered(questions, given, on_row=on_row, on_note=notes.append)
    assert events == {}
    assert rows_like(tmp_path / "out.csv") == rows_like(tmp_path / "one.csv")
    assert (result.progress.rows, result.progress.failed) == (1061, 1)
    assert sum(share.losses for share in result.workers) == 3
    assert sum("its node has died" in words for words in notes) == 2
    assert sum(share.rows for share in result.workers) == 1061
    assert actors() == []
