"""A part of a run that is done by itself, on another machine or at another time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idefics_cli.errors import UsageError

_AUTO = "auto"
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
_KUBERNETES = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 1) of `count`; every document belongs to one part, by its content."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(
                f"--shard {self}: the parts of {self.count} are 1/{self.count} to {self.count}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `I/N`, `auto` or `auto/N`.

        Raises:
            UsageError: it is none of them, or the environment does not say which part this is.

        """
        value = str(text).strip()
        if value == _AUTO:
            return cls._of_slurm(os.environ)
        match = re.fullmatch(r"(auto|[0-9]{1,9})/([0-9]{1,9})", value)
        if match is None:
            raise UsageError(f"--shard takes I/N (1/4 to 4/4), auto (SLURM) or auto/N (Kubernetes): not {value!r}")
        if match[1] != _AUTO:
            return cls(int(match[1]), int(match[2]))
        return cls(_number(os.environ, _KUBERNETES, value) + 1, int(match[2]))

    @classmethod
    def _of_slurm(cls, environment: Mapping[str, str]) -> Shard:
        task, count = (_number(environment, name, _AUTO) for name in _SLURM[:2])
        defaults = dict(zip(_SLURM[2:], ("0", "1"), strict=True))
        first, step = (_number({**defaults, **environment}, name, _AUTO) for name in _SLURM[2:])
        if first > 1:
            raise UsageError(
                f"--shard auto: {_SLURM[2]}={first}: an array that begins with neither 0 nor 1 may be a part of one "
                "that is submitted again, and its shards would be others: give --shard I/N"
            )
        if task < first or (task - first) % max(1, step):
            raise UsageError(f"--shard auto: {_SLURM[0]}={task} is no task of an array from {first} in steps of {step}")
        return cls((task - first) // max(1, step) + 1, count)

    def holds(self, document: str | Sequence[str]) -> bool:
        """Whether a document belongs to this part.

        Args:
            document: the digest of its bytes; of several, a list.

        """
        return shard_of(document, self.count) == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def shard_of(document: str | Sequence[str], count: int) -> int:
    """Return the part, from 1 to `count`, that a document belongs to (see `Shard.holds`)."""
    text = document if isinstance(document, str) else json.dumps(list(document))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:8], "big") % count + 1


def _number(environment: Mapping[str, str], name: str, value: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        found = f"{name} is {text!r}, no number" if text else f"{name} is not set"
        raise UsageError(
            f"--shard {value}: {found}; auto is for tasks of a SLURM array, auto/N for an indexed Kubernetes "
            "job of N completions; elsewhere give --shard I/N"
        )
    return int(text)
