"""Writes a checkpoint of the 8B model's shape with random weights: what loading and starting are measured on.

`python tools/write_full_shape.py FOLDER` takes 16.8 GB in bfloat16, and a GPU or as much memory; a hub id behind the
folder, such as HuggingFaceTB/SmolVLM-256M-Instruct, writes that shape. `--awq` writes the text model's products as AWQ
words of 4 bits: 5.7 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from idefics_cli.config import TINY_MODEL, ModelSettings
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.native.weights import RandomSource
from idefics_cli.engine.quantization import GROUP

_SHARD = 5_000_000_000  # bytes
_AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": ["vision_model", "modality_projection", "perceiver_resampler"],
}


def main(folder: Path, model: str, *, awq: bool) -> None:
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
    config = dict(checkpoint.config) | ({"quantization_config": _AWQ} if awq else {})
    (folder / "config.json").write_text(json.dumps(config))
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
        is_product = "text_model" in name and name.endswith("_proj.weight")
        shard |= _awq_words(name, shapes[name], device) if awq and is_product else {name: source(name).cpu()}
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD:
            save()
    save()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _awq_words(name: str, shape: tuple[int, ...], device: torch.device) -> dict[str, torch.Tensor]:
    """Draw the tensors that stand for a weight (out, in) of deviation 0.02 or so."""
    outputs, inputs = shape
    groups = inputs // GROUP

    def words(rows: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, (rows, outputs // 8), dtype=torch.int32, device=device).cpu()

    scales = torch.full((groups, outputs), 0.003, dtype=torch.float16)
    module = name.removesuffix("weight")
    return {f"{module}qweight": words(inputs), f"{module}qzeros": words(groups), f"{module}scales": scales}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default=TINY_MODEL)
    parser.add_argument("--awq", action="store_true")
    main(**vars(parser.parse_args()))
