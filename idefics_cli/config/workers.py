"""How many workers answer, and where they run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from idefics_cli.config.option import Option, Panel, check_above_zero
from idefics_cli.errors import UsageError

_MOST = 1024


@dataclass(frozen=True, slots=True)
class Gpus:
    """Which GPUs of this machine: all, so many, or those with these indexes."""

    count: int | None = None
    """None stands for all, where there are no indexes."""
    indexes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Gpus:
        """Read `N`, `all` or `0,2,3`.

        Raises:
            UsageError: it is none of them.

        """
        value = str(text).strip()
        if value == "all":
            return cls()
        if re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= _MOST:
            return cls(int(value))
        indexes = tuple(map(int, value.split(","))) if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})+", value) else ()
        if not indexes or len(set(indexes)) < len(indexes):
            raise UsageError(
                f"--gpus takes a number above 0, all, or indexes from 0 with commas between (0,2,3): not {value!r}"
            )
        return cls(indexes=indexes)

    def __str__(self) -> str:
        return ",".join(map(str, self.indexes)) or ("all" if self.count is None else str(self.count))


_HUNG_ON_GPU, _HUNG_ON_CPU = 600.0, 3600.0  # a step takes a minute at most on a GPU; on a CPU a page takes minutes


def parse_ray(text: str) -> str:
    """Read the address of a Ray cluster: `auto`, or HOST:PORT.

    Raises:
        UsageError: it is none, or one of Ray's that do not fit.

    """
    value = str(text).strip()
    if value == "auto" or re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", value):
        return value
    if value == "local":
        raise UsageError("--ray joins a cluster that runs already: `ray start --head` starts one here, then --ray auto")
    if value.startswith("ray://"):
        raise UsageError(f"--ray {value}: not through a Ray client; start the run on a machine of the cluster")
    raise UsageError(f"--ray takes auto or HOST:PORT of a running cluster: not {value!r}")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How many workers answer, and where they run; without any, this process answers."""

    gpus: Annotated[
        Gpus | None,
        Option(
            "A worker for each of these GPUs: so many, all, or by index; with --device cpu, N on the CPU.",
            Panel.WORKERS,
            metavar="N|all|0,2,3",
            default="one GPU, in this process; with --ray all",
            parse=Gpus.parse,
        ),
    ] = None
    ray: Annotated[
        str | None,
        Option(
            "Workers are actors of this Ray cluster (extra ray); auto is the one that this machine belongs to.",
            Panel.WORKERS,
            metavar="auto|HOST:PORT",
            default="no cluster",
            parse=parse_ray,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        Option(
            "With --ray: the part of a GPU that a worker takes, 0.5 for two workers on each; needs --gpu-memory.",
            Panel.WORKERS,
            metavar="SHARE",
            default="1",
        ),
    ] = None
    send_documents: Annotated[
        bool,
        Option("With --ray: send the documents' bytes to workers, which then need no shared folder.", Panel.WORKERS),
    ] = False
    hang_timeout: Annotated[
        float | None,
        Option(
            "With several workers: replace one that has done nothing for so long with questions to answer.",
            Panel.WORKERS,
            metavar="SECONDS",
            default="600, on a CPU 3600",
        ),
    ] = None
    unordered: Annotated[
        bool,
        Option("With several workers: write rows as they are done, not in the order of the questions.", Panel.WORKERS),
    ] = False

    def __post_init__(self) -> None:
        check_above_zero("--hang-timeout", self.hang_timeout, "a number of seconds")
        if self.gpus is None and self.ray is None:
            if self.unordered:
                raise UsageError(
                    "--unordered goes with --gpus or --ray: one worker's rows are in the order of the questions"
                )
            if self.hang_timeout is not None:
                raise UsageError("--hang-timeout goes with --gpus or --ray: a single process can't replace itself")
        if self.ray is None:
            for flag, given in (("--gpus-per-worker", self.gpus_per_worker), ("--send-documents", self.send_documents)):
                if given:
                    raise UsageError(f"{flag} goes with --ray")
        elif self.gpus is not None and self.gpus.indexes:
            raise UsageError(f"--gpus {self.gpus} with --ray: Ray chooses the GPUs; give their number, or all")
        share = self.gpus_per_worker
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpus-per-worker takes a number above 0, at most 1: not {share:g}")

    @property
    def are_several(self) -> bool:
        """Whether workers answer, not this process."""
        return self.gpus is not None or self.ray is not None

    @property
    def workers_per_gpu(self) -> int:
        """How many workers share a GPU of a Ray cluster."""
        return int(1 / (self.gpus_per_worker or 1) + 1e-9)

    def hang_seconds(self, *, on_cpu: bool) -> float:
        """Return the seconds after which a worker that does nothing is replaced."""
        return self.hang_timeout or (_HUNG_ON_CPU if on_cpu else _HUNG_ON_GPU)
