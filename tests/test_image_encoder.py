from __future__ import annotations

import pytest
import torch

from idefics_cli.engine.native.image_encoder import ImageEncoder
from idefics_cli.engine.native.model_runner import ModelRunner
from tests.small_checkpoints import CPU, noise_page, save_checkpoint, settings_of, small_runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    made, _ = small_runner(settings_of(save_checkpoint(tmp_path_factory.mktemp("small"))))
    return made


def encoder(runner: ModelRunner, max_projected_patches: int = 1 << 14) -> ImageEncoder:
    return ImageEncoder(runner.vision, runner.ops, CPU, max_projected_patches=max_projected_patches, lanes=1)


def test_crops_of_several_shapes_come_back_in_their_order(runner: ModelRunner) -> None:
    page = noise_page(0, (14, 16), (14, 20), (14, 16), (16, 14), (14, 20))
    one = encoder(runner)
    (together,) = one.encode([page.crops])
    alone = torch.cat([one.encode([[crop]])[0] for crop in page.crops])
    assert together.shape == (5 * 4, 32)
    assert float((together - alone).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("patches", [1, 100, 447, 448])
def test_patches_projected_in_parts_are_those_projected_together(runner: ModelRunner, patches: int) -> None:
    page = noise_page(0, (14, 16), (14, 16))
    (whole,) = encoder(runner).encode([page.crops])
    (parts,) = encoder(runner, patches).encode([page.crops])
    assert float((parts - whole).norm() / whole.norm()) < 1e-5


def test_a_cpu_takes_a_page_at_a_time_and_goes_on_after_memory_ran_out(runner: ModelRunner) -> None:
    one = encoder(runner)
    assert one.max_pages == 1
    page = noise_page(3, (14, 16))
    (before,) = one.encode([page.crops])
    one.release_memory()
    assert torch.equal(one.encode([page.crops])[0], before)
