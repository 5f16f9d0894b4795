from __future__ import annotations

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine import machine
from idefics_cli.engine.checkpoint import open_full_shape

CPU = torch.device("cpu")


def test_operations_of_a_page_and_a_token_at_full_shape() -> None:
    """A letter page, split: 15.5 for the tower's products, 8.9 for its attention, 3.5 for the projection, 0.4 after it."""
    config = open_full_shape(ModelSettings(device=Device.CPU, dtype=Dtype.BFLOAT16)).config
    assert machine.page_flops(config, [54 * 70] * 5) / 1e12 == pytest.approx(15.5 + 8.9 + 3.5 + 0.8, abs=0.2)
    assert machine.token_flops(config) / 1e9 == pytest.approx(2 * 6.98, rel=0.01)  # 7.24 B without the embeddings


def test_what_a_report_says_of_the_machine() -> None:
    assert machine.matrix_rate(CPU, torch.float32) > 0
    assert {"python", "torch", "transformers"} == set(machine.versions())
    assert machine.device_name(CPU)
    machine.reset_peak(CPU)
    assert machine.peak_gb(CPU) is None
