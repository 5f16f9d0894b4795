"""Writes a checkpoint of the 8B model's shape with random weights: what loading and starting are measured on.

`python tools/write_full_shape.py FOLDER` takes 16.8 GB in bfloat16, and a GPU or as much memory; a hub id behind the
folder, such as HuggingFaceTB/SmolVLM-256M-Instruct, writes that shape.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from idefics_cli.config import TINY_MODEL, ModelSettings
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.native.weights import RandomSource

_SHARD = 5_000_000_000  # bytes


def main(folder: Path, model: str = TINY_MODEL) -> None:
    """Write config, processor, tokenizer and shards."""
    checkpoint = full_shape_checkpoint(ModelSettings(model))
    family = native_family_of(checkpoint)
    shapes = family.config.weight_shapes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = RandomSource(shapes, torch.bfloat16, device)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(checkpoint.folder / name, folder)
    processor = {"image_processor": dict(checkpoint.processor_config), "image_seq_len": family.config.image_seq_len}
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config)))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    numbers = iter(range(1, 1000))

    def save() -> None:
        file = f"model-{next(numbers):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name in shapes:
        shard[name] = source(name).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD:
            save()
    save()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
