"""A small cluster, simulated: what the supervisor does to it holds at any size."""

from __future__ import annotations

import dataclasses

import pytest

from tools.simulate_cluster import Cluster, Simulation, report

SMALL = Cluster(nodes=4, gpus=2, rows=3000, window=16)


def test_undisturbed_workers_answer_each_row_once_and_in_order_with_little_idling() -> None:
    figures = Simulation(SMALL).run()
    assert figures.order == list(range(SMALL.rows))
    assert figures.answered == SMALL.rows
    assert figures.most_pending <= 8 * SMALL.window
    assert figures.idle_s < 0.01 * figures.seconds * 8
    assert figures.rows / figures.seconds == pytest.approx(8 * SMALL.rows_per_s, rel=0.1)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_lost_nodes_cost_time_only(is_ordered: bool) -> None:
    cluster = dataclasses.replace(SMALL, losses_per_hour=120.0, away_s=5.0, is_ordered=is_ordered)
    figures = Simulation(cluster).run()
    assert figures.lost_nodes > 0
    assert sorted(figures.order) == list(range(SMALL.rows))
    assert (figures.order == sorted(figures.order)) is is_ordered
    assert figures.condemned == 0
    assert figures.seconds > Simulation(SMALL).run().seconds


def test_the_report_says_what_it_means() -> None:
    text = "\n".join(report(SMALL, Simulation(SMALL).run()))
    assert "8 workers, 3,000 rows" in text
    assert "a billion rows" in text
