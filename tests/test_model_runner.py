from __future__ import annotations

from idefics_cli.config import Kernels
from idefics_cli.engine.native.model_runner import choose_ops
from idefics_cli.engine.native.ops import torch_ops
from tests.small_checkpoints import CPU


def test_the_cpu_takes_torch() -> None:
    assert choose_ops(Kernels.AUTO, CPU, 128) is torch_ops
    assert choose_ops(Kernels.OFF, CPU, 128) is torch_ops
