from __future__ import annotations

import time

import torch

from idefics_cli.engine.clock import Lap, spent


def test_a_lap_takes_what_its_work_takes_and_is_shared_out() -> None:
    lap = Lap(torch.device("cpu"))
    time.sleep(0.02)
    lap.stop()
    time.sleep(0.02)
    assert 20 <= lap.ms < 40
    assert spent([(lap, 0.25), (lap, 0.75)]) == lap.ms
