"""The pool of actors before it has joined anything; its life on a cluster is in test_ray.py."""

from __future__ import annotations

from typing import Any

import pytest

from idefics_cli.workers.messages import Stop, WorkerSpec
from idefics_cli.workers.ray_actors import RayPool
from tests.worker_engines import open_fake, settings

pytestmark = pytest.mark.ray


class Cluster:
    """Is left once."""

    gpus, free_gpus = 0, 0.0

    def __init__(self) -> None:
        self.closed = 0

    def nodes(self) -> list[Any]:
        return []

    def request(self, bundles: list[dict[str, float]]) -> None:
        assert bundles == []

    def close(self) -> None:
        self.closed += 1


def pool_of(count: int, cluster: Cluster) -> RayPool:
    spec = WorkerSpec(settings(None, None), open_fake)
    return RayPool(cluster, spec, count, share=0.0, grows=False, on_note=lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "seconds"), [(1, 0.0), (15, 0.0), (16, 0.032), (250, 0.5), (512, 1.0), (9999, 1.0)])
def test_many_workers_gather_rows_for_a_thousand_calls_a_second(count: int, seconds: float) -> None:
    assert pool_of(count, Cluster()).gather_s == pytest.approx(seconds)


def test_workers_that_are_not_there_take_no_message_and_end_without_one() -> None:
    cluster = Cluster()
    pool = pool_of(2, cluster)
    pool.send(0, Stop())
    assert pool.end(1) == "killed"
    pool.wake()
    assert pool.events(60.0) == []
    assert pool.events(0.0) == []
    pool.close(is_done=True)
    assert cluster.closed == 1
