"""Clusters that are not there; what a real one has is in test_ray.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.errors import ModelError
from idefics_cli.workers.ray_cluster import Node, RayCluster

NOBODY = "127.0.0.1:9"


def test_a_node_says_what_it_has() -> None:
    assert str(Node("1", "10.0.0.1", 8.0, 96.0)) == "10.0.0.1: 8 GPUs, 96 cores"
    assert str(Node("2", "10.0.0.2", 1.0, 0.5)) == "10.0.0.2: 1 GPU, 0.5 cores"


@pytest.mark.ray
@pytest.mark.parametrize("address", [NOBODY, "127.0.0.1", "127.0.0.1:port", "[::1]:99999999", ""])
def test_an_address_without_a_cluster_is_named(address: str) -> None:
    with pytest.raises(ModelError, match=r"--ray .*no cluster can be reached .*`ray start`"):
        RayCluster(address)


@pytest.mark.ray
def test_auto_looks_where_ray_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ModelError, match="RAY_ADDRESS is not set, and none was started on this machine"):
        RayCluster("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:10\n")
    with pytest.raises(ModelError, match=r"\(127.0.0.1:10: "):
        RayCluster("auto")
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    with pytest.raises(ModelError, match=rf"\({NOBODY}: "):
        RayCluster("auto")
