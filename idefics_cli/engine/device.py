"""Which device and dtype a run takes: found out without torch, which takes seconds to import."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.errors import ModelError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where the model runs, and in which dtype."""

    device: str
    """cpu or cuda, as torch names it."""
    dtype: str
    """float32, bfloat16 or float16."""


def choose_device(settings: ModelSettings) -> DeviceChoice:
    """Choose device and dtype for the settings.

    Raises:
        ModelError: the device that was asked for is not here.

    """
    has_gpu = compute_capability() is not None
    if settings.device is Device.CUDA and not has_gpu:
        raise ModelError("--device cuda: no usable CUDA device here; see idefics-cli doctor, or use --device cpu")
    device = "cuda" if has_gpu and settings.device is not Device.CPU else "cpu"
    auto = Dtype.BFLOAT16 if device == "cuda" else Dtype.FLOAT32
    return DeviceChoice(device, str(auto if settings.dtype is Dtype.AUTO else settings.dtype))


@functools.cache
def compute_capability() -> tuple[int, int] | None:
    """Return the compute capability of the first GPU that torch would use; None where there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not _is_torch_built_with_cuda():
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetAttribute(
            ctypes.byref(value), attribute, device
        ):
            return None
        found.append(value.value)
    return found[0], found[1]


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
