from __future__ import annotations

import torch

from idefics_cli.engine.operations import has_kernels


def test_a_cpu_has_no_kernels() -> None:
    assert not has_kernels(torch.device("cpu"), 128)
