"""Copies between the host and the device that neither of them waits for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor without waiting for the GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class HostCopy:
    """Tensors as they are behind the work that the device has been handed, on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type != "cuda":
            self._arrays = [tensor.to("cpu", copy=True).numpy() for tensor in tensors]
            return
        pinned = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
        for host, tensor in zip(pinned, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._arrays = [host.numpy() for host in pinned]  # over the same memory
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        self._event.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[np.ndarray]:
        """Return the copies, in their order; waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        return self._arrays
