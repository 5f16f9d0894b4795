from __future__ import annotations

import dataclasses

import pytest
import torch

from idefics_cli.config import Kernels, ModelSettings
from idefics_cli.engine.native.memory_plan import MemoryPlan
from idefics_cli.engine.native.model_runner import ModelRunner, choose_ops
from idefics_cli.engine.native.ops import torch_ops
from tests.small_checkpoints import CPU, noise_page, save_checkpoint, settings_of, small_runner

PLAN = MemoryPlan(max_num_seqs=2, slots=100, max_projected_patches=1 << 14, max_num_batched_tokens=None)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    settings: ModelSettings = settings_of(save_checkpoint(tmp_path_factory.mktemp("small")))
    made, _ = small_runner(settings)
    made.allocate(PLAN, PLAN.slots)
    return made


def test_crops_of_several_shapes_come_back_in_their_order(runner: ModelRunner) -> None:
    page = noise_page(0, (14, 16), (14, 20), (14, 16), (16, 14), (14, 20))
    together = runner.encode(page.crops)
    alone = torch.cat([runner.encode((crop,)) for crop in page.crops])
    assert together.shape == (5 * 4, 32)
    assert float((together - alone).norm() / alone.norm()) < 1e-5


def test_patches_projected_in_parts_are_those_projected_together(runner: ModelRunner) -> None:
    page = noise_page(0, (14, 16), (14, 16))
    whole = runner.encode(page.crops)
    runner.allocate(dataclasses.replace(PLAN, max_projected_patches=100), PLAN.slots)
    assert float((runner.encode(page.crops) - whole).norm() / whole.norm()) < 1e-5


def test_the_cpu_takes_torch() -> None:
    assert choose_ops(Kernels.AUTO, CPU, 128) is torch_ops
    assert choose_ops(Kernels.OFF, CPU, 128) is torch_ops
