"""The device as torch knows it: which one, how much of its memory is free, and which dtypes it has."""

from __future__ import annotations

import torch

from idefics_cli.engine.device import DeviceChoice, has_bfloat16
from idefics_cli.errors import ModelError


def torch_device(choice: DeviceChoice, gpu_memory: float | None) -> torch.device:
    """Return the device, held to a part of its memory where the user wants that; this thread uses it from now on.

    Raises:
        ModelError: torch does not see the GPU.

    """
    if choice.device == "cpu":
        return torch.device("cpu")
    if choice.device == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("this installation of torch, or this macOS, can't use the GPU; --device cpu does without")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ModelError("there is a GPU, but this installation of torch can't use it; --device cpu does without")
    if choice.index >= torch.cuda.device_count():
        raise ModelError(f"torch sees {torch.cuda.device_count()} GPUs: there is no cuda:{choice.index}")
    device = torch.device("cuda", choice.index)
    use_device(device)
    if gpu_memory:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_memory * 1e9 / total), device)
    return device


def use_device(device: torch.device) -> None:
    """Make a GPU the one that kernels of this thread run on: each thread begins with the first GPU."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def free_memory(device: torch.device, limit: float | None) -> int | None:
    """Return the bytes of the GPU's memory that this process may still take; None where memory is the host's.

    Args:
        device: where the model runs.
        limit: GB that the process may have in all; None for no limit.

    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    return min(free, int(limit * 1e9) - torch.cuda.memory_reserved(device)) if limit else free


def wide_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return a dtype with the range of float32 for what outgrows float16, whose largest number is 65504.

    bfloat16 where the GPU has units for it, else float32; dtypes that have the range already stay.
    """
    if dtype is not torch.float16:
        return dtype
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return torch.bfloat16 if has_bfloat16(capability) else torch.float32
