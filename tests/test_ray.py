"""Workers on a Ray cluster of three nodes on this machine, whose GPUs are not real, whatever happens to them."""

from __future__ import annotations

import dataclasses
import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from idefics_cli.batch import BatchResult, run
from idefics_cli.config import Gpus, RunSettings, WorkerSettings
from idefics_cli.errors import ModelError
from idefics_cli.pipeline import Progress
from idefics_cli.records import Row
from tests.conftest import Run
from tests.test_gpus import questions, rows_like
from tests.test_kills import inbox, rows_of
from tests.worker_engines import open_fake, open_unloadable, settings

assert inbox, questions  # fixtures

pytestmark = pytest.mark.ray
_NODE = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 6}
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20, "_system_config": soon}
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


def actors() -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if "ray::RayWorker" in " ".join(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_actors_killed_and_nodes_lost_and_added_lose_and_double_nothing(
    cluster: Any, questions: Path, tmp_path: Path
) -> None:
    with questions.open("a") as stream:
        for number in range(600):
            stream.write(f"{number % 12}.png,slow more {number},m{number}\n")
    answered(questions, settings(tmp_path / "one.csv", None))
    notes: list[str] = []
    events = {100: "kill", 250: "remove", 450: "add"}

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
    assert (result.progress.rows, result.progress.failed) == (661, 1)
    assert sum(share.losses for share in result.workers) == 3
    assert sum("its node has died" in words for words in notes) == 2
    assert sum(share.rows for share in result.workers) == 661
    assert actors() == []


def test_the_tiny_model_on_cores_answers_as_one_process_from_bytes_too(
    cluster: Any, inbox: Path, cli: Run, tmp_path: Path
) -> None:
    one, out = tmp_path / "one.csv", tmp_path / "out.csv"
    asked = ("run", inbox.name, "-q", "questions.csv", "--model", "tiny", "--device", "cpu", "--split", "never")
    assert cli(*asked, "-o", one, cwd=inbox.parent).returncode == 0
    on_ray = (*asked, "--ray", cluster.address, "--gpus", "2", "--send-documents")
    dry = cli(*on_ray, "-o", out, "--dry-run", cwd=inbox.parent)
    assert f"2 of the Ray cluster {cluster.address}" in dry.stdout, dry.stderr
    done = cli(*on_ray, "-o", out, cwd=inbox.parent)
    assert done.returncode == 0, done.stderr
    assert rows_of(out) == rows_of(one)
    assert " pages/s since the model was loaded" in done.stderr


def test_a_signal_ends_all_within_ten_seconds_with_what_is_done(cluster: Any, questions: Path, tmp_path: Path) -> None:
    with questions.open("a") as stream:
        stream.writelines(f"1.png,slow more {number},m{number}\n" for number in range(3000))
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "tests.worker_engines", str(questions), str(output), cluster.address]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not output.exists() or output.read_bytes().count(b"\n") < 40:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert len(rows_like(output)) >= 39
    psutil.wait_procs(actors(), timeout=10)
    assert actors() == []


def test_what_no_worker_can_load_ends_the_run_with_its_words(cluster: Any, questions: Path, tmp_path: Path) -> None:
    given = on_cluster(settings(tmp_path / "out.csv", None), cluster, gpus=Gpus(3), gpus_per_worker=0.5, gpu_memory=9.0)
    with pytest.raises(ModelError, match="no such weights, says the loader"):
        run([], str(questions), given, io.StringIO(), open_with=open_unloadable)
    rows = rows_like(tmp_path / "out.csv") if (tmp_path / "out.csv").exists() else []
    assert {row["document"].rpartition("/")[2] for row in rows} <= {"broken.pdf"}  # which fails without a model


def test_doctor_says_what_the_cluster_has(cluster: Any, cli: Run) -> None:
    done = cli("doctor", "--model", "nobody/nothing", "--ray", cluster.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 GPUs, 2 cores") == 2
    assert "4 workers, 4 of the GPUs are free" in done.stdout


def test_an_address_without_a_cluster_is_refused(questions: Path, tmp_path: Path) -> None:
    given = dataclasses.replace(
        settings(tmp_path / "out.csv", None), workers=WorkerSettings(Gpus(1), ray="127.0.0.1:9")
    )
    with pytest.raises(ModelError, match=r"--ray 127.0.0.1:9: no cluster can be reached"):
        run([], str(questions), given, io.StringIO(), open_with=open_fake)
