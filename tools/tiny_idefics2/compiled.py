"""Keeps what torch compiled beside a checkpoint, so that a run elsewhere, with the same GPU and torch, need not anew.

On one machine torch's own cache does the same: TORCHINDUCTOR_CACHE_DIR names its folder.
"""

from __future__ import annotations

from pathlib import Path

import torch

_MOST = 15_000_000  # bytes a file


def save_compiled(folder: Path, rank: int) -> None:
    """Write what was compiled for this GPU so far, which no GPU of another number finds, in files of 15 MB at most."""
    try:
        found = torch.compiler.save_cache_artifacts()
    except Exception as error:  # a convenience, on which no training run may fail
        print(f"compiled code is not kept: {error}", flush=True)
        return
    if found is None:
        return
    for old in folder.glob(f"compiled-{rank}-*.bin"):
        old.unlink()
    code = found[0]
    for number, start in enumerate(range(0, len(code), _MOST)):
        (folder / f"compiled-{rank}-{number:02}.bin").write_bytes(code[start : start + _MOST])


def load_compiled(folder: Path | None, rank: int) -> None:
    """Take over what an earlier run compiled, where its files are; only from a run of one's own: it is code."""
    files = sorted(folder.glob(f"compiled-{rank}-*.bin")) if folder is not None else []
    if not files:
        return
    try:
        torch.compiler.load_cache_artifacts(b"".join(file.read_bytes() for file in files))
    except Exception as error:  # then it is compiled anew
        print(f"compiled code is not taken over: {error}", flush=True)
