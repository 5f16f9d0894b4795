from __future__ import annotations

import pytest

from idefics_cli.engine.families.base import Normalization
from idefics_cli.engine.families.pixels import normalization_of


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Normalization(1 / 255, (0.5,) * 3, (0.5,) * 3)),
        ({"do_rescale": False}, Normalization(1.0, (0.5,) * 3, (0.5,) * 3)),
        ({"do_normalize": False, "rescale_factor": 0.5}, Normalization(0.5, (0.0,) * 3, (1.0,) * 3)),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": 0.25}, Normalization(1 / 255, (0.1, 0.2, 0.3), (0.25,) * 3)),
    ],
)
def test_settings_become_scale_means_and_deviations(settings: dict[str, object], expected: Normalization) -> None:
    assert normalization_of(settings) == expected


@pytest.mark.parametrize("settings", [{"image_mean": "grey"}, {"rescale_factor": None}, {"image_std": [None]}])
def test_settings_of_the_wrong_kind_raise(settings: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        normalization_of(settings)
