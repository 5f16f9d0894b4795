"""Which workers `--gpus` and `--ray` ask for, and what of their options contradicts itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.batch import run
from idefics_cli.config import Device, Gpus, ModelSettings, PageSettings, QuestionSettings, RunSettings, WorkerSettings
from idefics_cli.config.workers import parse_ray
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.workers.placement import describe, placements


def test_placements_say_what_would_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = RunSettings(model=ModelSettings("tiny", device=Device.CPU), pages=PageSettings(workers=6))
    made = placements(Gpus(3), cpu)
    assert [place.name for place in made] == ["worker 1", "worker 2", "worker 3"]
    assert {place.settings.pages.worker_count for place in made} == {2}
    assert describe(made) == "3 (worker 1, worker 2, worker 3), 2 page processes each"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ModelError, match="--device cpu --gpus N"):
        placements(Gpus(2), RunSettings())
    with pytest.raises(UsageError, match="number of workers"):
        placements(Gpus(), cpu)
    with pytest.raises(UsageError, match="--gpu-memory is for CUDA GPUs"):
        placements(Gpus(2), RunSettings(model=ModelSettings("tiny", device=Device.CPU, gpu_memory=3.0)))
    with pytest.raises(UsageError, match="exclude each other"):
        placements(Gpus(2), RunSettings(model=ModelSettings(device=Device.parse("cuda:1"))))


@pytest.mark.parametrize("text", ["0", "", "0,0", "-1", "two", "1,"])
def test_what_names_no_gpus_is_refused(text: str) -> None:

    with pytest.raises(UsageError, match="--gpus takes"):
        Gpus.parse(text)
    with pytest.raises(UsageError, match="--unordered goes with --gpus or --ray"):
        WorkerSettings(unordered=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker goes with --ray"),
        ({"send_documents": True}, "--send-documents goes with --ray"),
        ({"hang_timeout": 5.0}, "--hang-timeout goes with --gpus or --ray"),
        ({"gpus": Gpus(2), "hang_timeout": 0.0}, "--hang-timeout takes a number of seconds above 0"),
        ({"ray": "auto", "gpus": Gpus(indexes=(0, 2))}, "Ray chooses the GPUs"),
        ({"ray": "auto", "gpus_per_worker": 1.5}, "at most 1: not 1.5"),
        ({"ray": "auto", "gpus_per_worker": -1.0}, "above 0"),
    ],
)
def test_options_of_workers_that_contradict_each_other_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        WorkerSettings(**given)


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto", "head.cluster.local:6379", "[::1]:6379"])
def test_addresses_of_a_cluster(address: str) -> None:
    assert parse_ray(address) == address


@pytest.mark.parametrize(
    ("address", "words"),
    [("local", "ray start --head"), ("ray://h:1", "not through a Ray client"), ("10.0.0.1", "auto")],
)
def test_what_is_no_address_of_a_cluster_is_refused(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_ray(address)


def test_workers_share_gpus_and_wait_longer_on_a_cpu() -> None:
    assert WorkerSettings(ray="auto", gpus_per_worker=0.5).workers_per_gpu == 2
    assert WorkerSettings(ray="auto", gpus_per_worker=1 / 3).workers_per_gpu == 3
    assert WorkerSettings(ray="auto", gpus_per_worker=0.4).workers_per_gpu == 2
    assert WorkerSettings(Gpus(1)).hang_seconds(on_cpu=True) == 3600
    assert WorkerSettings(Gpus(1)).hang_seconds(on_cpu=False) == 600
    assert WorkerSettings(Gpus(1), hang_timeout=7).hang_seconds(on_cpu=False) == 7


@pytest.mark.parametrize(
    ("model", "workers", "words"),
    [
        ({"device": "cpu"}, {}, "give the number of workers"),
        ({"device": "cuda:1"}, {}, "--ray and --device cuda:1 exclude each other"),
        ({"device": "cpu"}, {"gpus": Gpus(2), "gpus_per_worker": 0.5}, "there workers take no GPU"),
        ({}, {"gpus_per_worker": 0.5}, "--gpu-memory"),
        ({}, {"send_documents": True}, "--examples"),
    ],
)
def test_a_run_on_ray_that_cannot_be_is_refused_before_the_cluster_is_joined(
    model: dict[str, Any], workers: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    settings = RunSettings(
        model=ModelSettings("tiny", **model),
        workers=WorkerSettings(ray="127.0.0.1:9", **workers),
        questions=QuestionSettings(examples=tmp_path / "examples.csv"),
    )
    with pytest.raises(UsageError, match=words):
        run([str(tmp_path / "a.png")], ["What?"], settings, io.StringIO())
