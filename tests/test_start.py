"""Which workers the settings ask for; those of a Ray cluster are in test_ray.py, contradictions in test_placement.py."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from idefics_cli.config import Gpus, WorkerSettings
from idefics_cli.errors import ModelError
from idefics_cli.workers.messages import Lost, Opened, Report
from idefics_cli.workers.start import open_workers
from tests.worker_engines import open_fake, settings


def refuse_note(words: str) -> None:
    raise AssertionError(words)


def test_without_an_option_this_process_answers() -> None:
    assert open_workers(settings(None, None), [], open_fake, refuse_note) is None


def test_each_worker_of_this_machine_opens_its_engine() -> None:
    workers = open_workers(settings(None, 2), ["mine"], open_fake, refuse_note)
    assert workers is not None
    assert len(workers.names) == len(set(workers.names)) == 2
    assert "2" in workers.words
    assert workers.info is None  # the driver opens the checkpoint itself
    try:
        assert all(workers.pool.start(index) for index in range(2))
        opened: set[int] = set()
        while len(opened) < 2:
            for index, report in workers.pool.events(60.0):
                assert not isinstance(report, Lost), report
                if isinstance(report, Report):
                    opened |= {index for event in report.events if isinstance(event, Opened)}
    finally:
        workers.pool.close(is_done=False)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_named_with_its_remedy() -> None:
    given = settings(None, None)
    given = dataclasses.replace(given, workers=WorkerSettings(gpus=Gpus(count=1), ray="auto"))
    with pytest.raises(ModelError, match=r"--ray auto needs Ray, .*pip install 'idefics-cli\[ray\]'"):
        open_workers(given, [], open_fake, refuse_note)
