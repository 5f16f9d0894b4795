"""How many workers answer, and where they run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from idefics_cli.config.option import Option, Panel
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


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How many workers answer, and where they run; without any, this process answers."""

    gpus: Annotated[
        Gpus | None,
        Option(
            "A worker process for each of these GPUs: so many, all, or by index; with --device cpu, N on the CPU.",
            Panel.MODEL,
            metavar="N|all|0,2,3",
            default="one GPU, in this process",
            parse=Gpus.parse,
        ),
    ] = None
    unordered: Annotated[
        bool,
        Option("With several workers: write rows as they are done, not in the order of the questions.", Panel.OUTPUT),
    ] = False

    def __post_init__(self) -> None:
        if self.unordered and self.gpus is None:
            raise UsageError("--unordered goes with --gpus: one worker's rows are in the order of the questions")
