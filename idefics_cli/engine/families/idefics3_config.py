"""The sizes of an Idefics3 or SmolVLM model, and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.engine.families.base import DecoderConfig, VisionConfig
from idefics_cli.engine.families.model_config import LLAMA, decoder_config, model_shapes, vision_config
from idefics_cli.errors import ModelError


@dataclass(frozen=True, slots=True)
class Idefics3Config:
    """Sizes of the vision encoder, the connector and the text model."""

    vision: VisionConfig
    text: DecoderConfig
    scale_factor: int
    """Patches a side that the pixel shuffle of the connector joins into one image token."""
    image_token_id: int
    tie_word_embeddings: bool
    tile_patches: int
    """Patches a side of a tile."""
    tiles: int
    """A side of the largest grid."""
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str, *, tile: int, tiles: int) -> Idefics3Config:
        """Read config.json; what it leaves out has the defaults of transformers' Idefics3 configurations.

        Args:
            values: of config.json.
            name: of the checkpoint.
            tile: side of a tile in pixels, by the image processor.
            tiles: a side of the largest grid.

        Raises:
            ModelError: a setting is of the wrong kind.

        """
        text, gaps = decoder_config(values.get("text_config") or {"rms_norm_eps": 1e-5}, name, LLAMA)
        try:
            given = values.get("vision_config") or {}
            vision = vision_config(given, hidden_size=1152, num_attention_heads=16)
            activation = given.get("hidden_act", "gelu_pytorch_tanh")
            return cls(
                vision,
                text,
                scale_factor=int(values.get("scale_factor", 2)),
                image_token_id=int(values.get("image_token_id", 128257)),
                tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
                tile_patches=tile // vision.patch_size,
                tiles=tiles,
                gaps=gaps + ((f"vision hidden_act {activation}",) if activation != "gelu_pytorch_tanh" else ()),
            )
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise ModelError(f"{name}: config.json: {error}") from error

    @property
    def image_seq_len(self) -> int:
        """Image tokens of a tile."""
        return (self.tile_patches // self.scale_factor) ** 2

    @property
    def max_crops(self) -> int:
        """Images that a page is read as, at most: its tiles and itself."""
        return self.tiles**2 + 1

    @property
    def page_tokens(self) -> int:
        """Tokens of a page in a prompt, at most, where a mark of row and column is one token."""
        return self.max_crops * (self.image_seq_len + 2) + self.tiles + 2

    @property
    def context_width(self) -> int:
        """Numbers that the connector keeps of a patch: it is shuffled."""
        return self.vision.hidden_size

    @property
    def projection_width(self) -> int:
        """Numbers of a patch that exist at once in the projection: its part of an image token."""
        return -(-self.text.hidden_size // self.scale_factor**2)

    def connector_products(self, patches: int) -> int:
        """Return the multiplications of the connector for a crop of so many patches."""
        return patches * self.vision.hidden_size * self.text.hidden_size

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, by the name that the published checkpoints give it."""
        shapes = model_shapes(self.vision, self.text, tied=self.tie_word_embeddings)
        joined = self.vision.hidden_size * self.scale_factor**2
        return shapes | {"model.connector.modality_projection.proj.weight": (self.text.hidden_size, joined)}
