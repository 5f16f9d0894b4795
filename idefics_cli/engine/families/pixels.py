"""How image processors normalize pixels, read from their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idefics_cli.engine.families.base import Normalization


def normalization_of(settings: Mapping[str, Any]) -> Normalization:
    """Return the normalization of an image processor of the Idefics2 kind; means and deviations are 0.5 if left out.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind.

    """
    scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return Normalization(scale, (0.0,) * 3, (1.0,) * 3)
    mean, std = (
        tuple(map(float, [given] * 3 if isinstance(given, int | float) else given))
        for given in (settings.get("image_mean") or 0.5, settings.get("image_std") or 0.5)
    )
    return Normalization(scale, mean, std)
