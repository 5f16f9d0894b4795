"""Which device and dtype a run takes: found out without torch, which takes seconds to import."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.errors import ModelError, UsageError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where the model runs, and in which dtype."""

    device: str
    """cpu, cuda or mps, as torch names it."""
    dtype: str
    """float32, bfloat16 or float16."""
    index: int = 0
    """Of the GPU."""

    @property
    def name(self) -> str:
        """The device as torch names it, the GPU's index included."""
        return f"cuda:{self.index}" if self.device == "cuda" else self.device


def choose_device(settings: ModelSettings) -> DeviceChoice:
    """Choose device and dtype for the settings.

    Raises:
        ModelError: the device that was asked for is not here.
        UsageError: it can't do what else is asked for.

    """
    asked, gpus = settings.device, compute_capabilities()
    if asked.kind == "mps":
        _check_mps(settings)
    if asked.kind == "cuda" and not gpus:
        raise ModelError(f"--device {asked}: no usable CUDA device here; see idefics-cli doctor, or use --device cpu")
    if (asked.index or 0) >= max(1, len(gpus)):
        there = "cuda:0" if len(gpus) == 1 else f"cuda:0 to cuda:{len(gpus) - 1}"
        raise ModelError(f"--device {asked}: there is no such GPU; here is {there}")
    first = "cuda" if gpus else "cpu"
    device, index = first if asked.kind == "auto" else asked.kind, asked.index or 0
    if settings.gpu_memory is not None and device != "cuda":
        raise UsageError(f"--gpu-memory is for CUDA GPUs, and the model would run on {device}: leave it out")
    dtype = auto_dtype(device, gpus[index] if device == "cuda" else None) if settings.dtype is Dtype.AUTO else None
    return DeviceChoice(device, str(dtype or settings.dtype), index)


def auto_dtype(device: str, capability: tuple[int, int] | None) -> Dtype:
    """Return the dtype that a device computes fast in.

    Args:
        device: cpu, cuda or mps.
        capability: compute capability of a CUDA device.

    """
    if device == "cpu":
        return Dtype.FLOAT32
    return Dtype.BFLOAT16 if has_bfloat16(capability) else Dtype.FLOAT16


def has_bfloat16(capability: tuple[int, int] | None) -> bool:
    """Whether a GPU has bfloat16 units: NVIDIA's from Ampere on; None stands for what is no CUDA device."""
    return capability is not None and capability >= (8, 0)


def compute_capability(index: int = 0) -> tuple[int, int] | None:
    """Return the compute capability of a GPU that torch would use; None where there is none."""
    found = compute_capabilities()
    return found[index] if index < len(found) else None


@functools.cache
def compute_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capability of each GPU that torch would use, in its order."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not _is_torch_built_with_cuda():
        return ()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = [_capability(driver, index) for index in range(count.value)]
    return tuple(one for one in found if one is not None) if None not in found else ()


def _capability(driver: ctypes.CDLL, index: int) -> tuple[int, int] | None:
    device, found = ctypes.c_int(), []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetAttribute(
            ctypes.byref(value), attribute, device
        ):
            return None
        found.append(value.value)
    return found[0], found[1]


def _check_mps(settings: ModelSettings) -> None:
    """Refuse what the GPU of a Mac can't do; whether torch can use it is found out when it is loaded.

    Raises:
        ModelError: this is no Mac with such a GPU.
        UsageError: it lacks a number format.

    """
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise ModelError("--device mps: that is the GPU of a Mac with Apple silicon; use --device auto, cuda or cpu")
    if settings.quantize is Quantize.FP8:
        raise UsageError("--quantize fp8: mps has no float8; use --quantize int8 or int4, or another --device")
    if settings.is_sampling:
        raise UsageError(
            "--temperature: answers are drawn in float64, which mps lacks; use --device cpu, or leave it out"
        )


def free_host_memory() -> int | None:
    """Return the bytes of memory that this process may still take, by the machine and by its control group."""
    free = []
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if available:
            free.append(int(available[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            inactive = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            used = int((group / "memory.current").read_text()) - int(inactive[1] if inactive else 0)
            free.append(int(limit) - used)
    except (OSError, ValueError):
        pass  # no such files on this system
    return min(free, default=None)


def _is_torch_built_with_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        words = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return True  # torch will tell
    return re.search(r"^cuda[^=]*=\s*['\"]", words, re.MULTILINE) is not None
