"""Quantizes a saved checkpoint to AWQ, by the description of its GEMM layout: the other way round than it is read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which output of eight stands in the n-th four bits of a word."""


def pack_words(levels: Tensor) -> Tensor:
    """int32 (rows, columns / 8) of levels (rows, columns) from 0 to 15."""
    words = torch.zeros(levels.shape[0], levels.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, output in enumerate(ORDER):
            words[:, word] |= levels[:, word * 8 + output].long() << (4 * place)
    return words.to(torch.uint32).view(torch.int32)


def quantize(weight: Tensor, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a product (out, in), and the weight that they stand for."""
    groups = weight.t().float().reshape(-1, size, len(weight))  # (groups, size, out)
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round()
    levels = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    dense = ((levels - zeros[:, None]) * scales.float()[:, None]).flatten(0, 1).t()
    parts = {"qweight": pack_words(levels.flatten(0, 1)), "qzeros": pack_words(zeros), "scales": scales}
    return parts, dense.contiguous()


def save_awq(folder: Path, size: int, **settings: object) -> dict[str, Tensor]:
    """Quantize the text model's products of a checkpoint in its folder; returns the weights that are meant."""
    tensors = load_file(folder / "model.safetensors")
    saved: dict[str, Tensor] = {}
    dense = dict(tensors)
    for name, tensor in tensors.items():
        if "text_model" in name and name.endswith("_proj.weight"):
            parts, dense[name] = quantize(tensor, tensor.shape[1] if size == -1 else size)
            saved |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            saved[name] = tensor
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": ["vision_model", "modality_projection", "perceiver_resampler"],
        "do_fuse": False, "exllama_config": None, "backend": "autoawq", **settings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return dense
