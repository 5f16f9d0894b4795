"""Time on the device: it stops only when the device is done, and measuring does not hold the device up."""

from __future__ import annotations

import time

import torch


class Timer:
    """A stretch of work, from its construction to `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = _now(device)
        self._end = self._start
        self._ms: float | None = None

    def stop(self) -> Timer:
        """Mark the end behind the work that has been handed to the device."""
        self._end = _now(self._device)
        return self

    def wait(self) -> None:
        """Wait for the device to reach the end."""
        if not isinstance(self._end, float):
            self._end.synchronize()

    @property
    def ms(self) -> float:
        """Milliseconds; waits for the device to reach the end."""
        if self._ms is None:
            self.wait()
            self._ms = _ms_between(self._start, self._end)
        return self._ms


def _ms_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return (end - start) * 1e3
    return float(start.elapsed_time(end))


def _now(device: torch.device) -> float | torch.cuda.Event:
    if device.type != "cuda":
        return time.perf_counter()
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call,unused-ignore]
    event.record(torch.cuda.current_stream(device))
    return event
