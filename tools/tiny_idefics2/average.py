"""Weights between those of two training runs: often better than either (Wortsman et al., Model soups, 2022)."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def main(first: Path, second: Path, share: float, out: Path) -> None:
    """Write a checkpoint: the first, with each weight moved that share of the way to the second's.

    Raises:
        FileExistsError: there is something at `out`.
        KeyError: the two are not cut into the same shards.

    """
    shutil.copytree(first, out, ignore=shutil.ignore_patterns("*.safetensors", "state.pt"))
    for path in sorted(first.glob("model*.safetensors")):
        with safe_open(path, "pt") as one, safe_open(second / path.name, "pt") as other:
            weights = {}
            for name in one.keys():  # noqa: SIM118 - no mapping
                weight, there = one.get_tensor(name), other.get_tensor(name)
                weights[name] = ((1 - share) * weight.float() + share * there.float()).to(weight.dtype)
            save_file(weights, out / path.name, metadata=one.metadata())
