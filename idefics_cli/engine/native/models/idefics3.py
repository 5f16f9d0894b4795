"""The vision side of Idefics3 and SmolVLM: a SigLIP encoder, and a connector that joins patches into image tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from idefics_cli.engine.families.base import Normalization
from idefics_cli.engine.families.idefics3_config import Idefics3Config
from idefics_cli.engine.native.models.siglip import VisionTower
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.ops.linear import Linear
from idefics_cli.engine.native.weights import Weights


class Idefics3Encoder:
    """Vision encoder and connector: from tiles to image features in the width of the text model."""

    def __init__(self, weights: Weights, config: Idefics3Config, normalization: Normalization) -> None:
        self._tower = VisionTower(weights, config.vision, normalization)
        # A hundredth of the encoder's work: it is never quantized.
        self._projection = Linear(weights.tensor("model.connector.modality_projection.proj.weight"))
        self._scale = config.scale_factor

    @torch.inference_mode()
    def encode(self, crops: Tensor, ops: Ops, *, max_projected_patches: int) -> Tensor:  # noqa: ARG002
        """Encode uint8 tiles (n, side, side, 3) to image features (n, image tokens, text width).

        The projection needs less memory than the encoder: all patches go through it at once.
        """
        patches, scale = self._tower(crops, ops), self._scale
        # 1. pixel shuffle: (n * rows * columns, width) -> (n * image tokens, scale * scale * width); in a token a
        # square's patches stand row by row
        side = round((len(patches) // len(crops)) ** 0.5) // scale
        squares = patches.view(len(crops), side, scale, side, scale, -1).transpose(2, 3)
        # 2. projection: (n * image tokens, text width)
        features = self._projection(squares.reshape(len(crops) * side * side, -1), ops)
        return features.view(len(crops), side * side, -1)
