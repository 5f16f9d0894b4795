"""What torch says of the machine: its devices, their speed and their memory."""

from __future__ import annotations

import platform

import torch

from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.native.timer import Timer

_SIDE = 8192
_REPEATS = 10


def gpus() -> list[str]:
    """Return each GPU's name and memory."""
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(f"{torch.cuda.get_device_name(index)}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return found


def free_gpu_memory(choice: DeviceChoice) -> int:
    """Return the free bytes of a CUDA GPU."""
    return int(torch.cuda.mem_get_info(choice.index)[0])


def device_name(choice: DeviceChoice) -> str:
    """Return the name of the GPU, or of the processor."""
    if choice.device == "cuda":
        return str(torch.cuda.get_device_name(choice.index))
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def peak_tflops(choice: DeviceChoice) -> float:
    """Measure TFLOP/s of large square matrix products of random numbers."""
    side = _SIDE if choice.device == "cuda" else _SIDE // 8
    device, dtype = torch.device(choice.name), getattr(torch, choice.dtype)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(_REPEATS):
        timer = Timer(device)
        torch.mm(left, right)
        times.append(timer.stop().ms)
    return float(2 * side**3 / sorted(times)[_REPEATS // 2] / 1e9)


def reset_peak_memory(choice: DeviceChoice) -> None:
    """Begin to watch the peak of the GPU's memory."""
    if choice.device == "cuda":
        torch.cuda.reset_peak_memory_stats(choice.index)


def peak_memory_gb(choice: DeviceChoice) -> float | None:
    """Return the peak of this process's GPU memory since `reset_peak_memory`, in GB; None on the CPU."""
    return torch.cuda.max_memory_allocated(choice.index) / 1e9 if choice.device == "cuda" else None


def free_memory_of_dropped_models() -> None:
    """Give the memory of models that are not used any more back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
