"""A Ray cluster as a run sees it: joining it, what it has, and asking an autoscaling one for more."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.errors import ModelError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_TO_REACH = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    address: str
    gpus: float
    cores: float

    def __str__(self) -> str:
        return f"{self.address}: {self.gpus:g} GPU{'s' * (self.gpus != 1)}, {self.cores:g} cores"


class RayCluster:
    """A cluster that this process has joined."""

    def __init__(self, address: str) -> None:
        """Join a cluster; none is ever started.

        Args:
            address: `auto`, or HOST:PORT.

        Raises:
            ModelError: Ray is not installed, or there is no such cluster.

        """
        if importlib.util.find_spec("ray") is None:
            raise ModelError(f"--ray {address} needs Ray, here and on every node: pip install 'idefics-cli[ray]'")
        import ray

        self._ray: Any = ray
        found = _reachable(address)
        self._is_joined_here = not ray.is_initialized()
        self._has_requested = False
        if self._is_joined_here:
            try:
                with _own_signal_handlers():
                    ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                words = " ".join(str(error).split()) or type(error).__name__
                raise ModelError(
                    f"--ray {address}: the cluster can't be joined ({words[:300]}); `ray status` on this machine says "
                    "how it is"
                ) from error

    def nodes(self) -> list[Node]:
        """Return the machines that are alive."""
        found = [node for node in self._ray.nodes() if node["Alive"]]
        resources = [(node, node.get("Resources", {})) for node in found]
        return [
            Node(node["NodeID"], node["NodeManagerAddress"], has.get("GPU", 0.0), has.get("CPU", 0.0))
            for node, has in resources
        ]

    @property
    def gpus(self) -> int:
        """GPUs of the machines that are alive, whoever uses them."""
        return int(sum(node.gpus for node in self.nodes()))

    @property
    def free_gpus(self) -> float:
        """GPUs that nobody has taken."""
        return float(self._ray.available_resources().get("GPU", 0.0))

    def request(self, bundles: list[dict[str, float]]) -> None:
        """Ask an autoscaling cluster for machines at once, by what is to be placed on them; nothing takes it back.

        Actors that wait for their place ask for it too, but only for so many machines at a time.
        """
        from ray.autoscaler.sdk import request_resources

        if bundles or self._has_requested:
            self._has_requested = bool(bundles)
            request_resources(bundles=bundles)

    def close(self) -> None:
        """Leave the cluster; actors of this process end with it."""
        if self._is_joined_here and self._ray.is_initialized():
            with contextlib.suppress(Exception):  # of a cluster that is gone
                self.request([])
            self._ray.shutdown()


def _reachable(address: str) -> str:
    """Return the HOST:PORT of a cluster to which a connection can be made: Ray itself tries for minutes.

    Raises:
        ModelError: there is none.

    """
    found = address
    if address == "auto":  # as `ray.init` does
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        latest = Path(folder, "ray", "ray_current_cluster")
        with contextlib.suppress(OSError):
            found = latest.read_text().strip()
        found = os.environ.get("RAY_ADDRESS") or found
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_REACH).close()
    except (OSError, ValueError, OverflowError) as error:
        where = (
            "RAY_ADDRESS is not set, and none was started on this machine" if found == "auto" else f"{found}: {error}"
        )
        raise ModelError(
            f"--ray {address}: no cluster can be reached ({where}); `ray start` on this machine starts or joins one"
        ) from error
    return found


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's handlers of signals, in whose place Ray puts its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
