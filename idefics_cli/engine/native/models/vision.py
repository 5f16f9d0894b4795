"""Which vision model a checkpoint has: this is the only place where it is chosen."""

from __future__ import annotations

from idefics_cli.engine.families.base import ModelConfig, Normalization
from idefics_cli.engine.families.idefics2_config import Idefics2Config
from idefics_cli.engine.families.idefics3_config import Idefics3Config
from idefics_cli.engine.native.models.idefics2 import Idefics2Encoder
from idefics_cli.engine.native.models.idefics3 import Idefics3Encoder
from idefics_cli.engine.native.models.siglip import VisionEncoder
from idefics_cli.engine.native.weights import Weights


def vision_encoder(weights: Weights, config: ModelConfig, normalization: Normalization) -> VisionEncoder:
    """Build the vision encoder and the connector of a model."""
    if isinstance(config, Idefics3Config):
        return Idefics3Encoder(weights, config, normalization)
    assert isinstance(config, Idefics2Config)
    return Idefics2Encoder(weights, config, normalization)
