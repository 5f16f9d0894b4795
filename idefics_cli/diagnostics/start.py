"""Measures what a process does before its first answer, stage by stage: behind `bench --start`.

Each measurement is a process of its own, which runs this module and prints its times as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import AdapterBase, Attention, Device, Dtype, Kernels, ModelSettings, Quantize
from idefics_cli.diagnostics.synthetic_pages import write_letters
from idefics_cli.errors import ModelError

_REPEATS = 3
_SAMPLED_EVERY_S = 0.01
_QUESTION = "What is the total?"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of one process, from its start; each stage includes those before it."""

    interpreter_s: float
    """Python, and what the command line imports."""
    torch_s: float
    """torch imported."""
    weights_s: float
    """Weights on the device, kernels compiled, the decoding step recorded."""
    answer_s: float
    """First answer, about a page of a PDF."""
    second_answer_s: float
    """Second answer, about the same page."""
    exit_s: float
    """The process has ended."""
    peak_host_gb: float | None
    """The process's own memory at its peak, mapped files (the page cache) not counted; None where the system does not
    say."""


def measure_start(settings: ModelSettings) -> Iterator[Start]:
    """Start processes that answer a question, one after another; the first may find caches cold.

    Raises:
        ModelError: a process failed.

    """
    with tempfile.TemporaryDirectory(prefix="idefics-cli-start-") as folder:
        document = write_letters(Path(folder), 1)[0]
        for _ in range(_REPEATS):
            started = time.time()
            command = [
                sys.executable,
                "-m",
                __name__,
                json.dumps({**dataclasses.asdict(settings), "device": str(settings.device)}),
                str(document),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this module
            ended = time.time()
            if done.returncode:
                raise ModelError(f"the measured process failed: {done.stderr.strip().splitlines()[-1:]}")
            times = json.loads(done.stdout.splitlines()[-1])
            peak = times.pop("peak_host_gb")
            yield Start(**{name: at - started for name, at in times.items()}, exit_s=ended - started, peak_host_gb=peak)


def _main(arguments: Sequence[str]) -> None:
    """Answer a question twice, and print when each stage was done."""
    times: dict[str, float | None] = {"interpreter_s": time.time()}
    memory = _OwnMemory()
    values = json.loads(arguments[0])
    kinds = {
        "adapter_base": AdapterBase,
        "device": Device.parse,
        "dtype": Dtype,
        "quantize": Quantize,
        "kernels": Kernels,
        "attention": Attention,
    }
    for name, kind in kinds.items():
        values[name] = kind(values[name])
    values["stop"] = tuple(values["stop"])
    from idefics_cli.config import RunSettings
    from idefics_cli.engine import open_engine
    from idefics_cli.session import Session

    settings = RunSettings(model=ModelSettings(**values))
    engine = open_engine(settings.model)
    with Session(settings=settings, engine=engine) as session:
        import torch  # noqa: F401 - the time that it takes is measured

        times["torch_s"] = time.time()
        engine.load()
        times["weights_s"] = time.time()
        for name in ("answer_s", "second_answer_s"):
            row = session.ask(arguments[1], _QUESTION)
            if row.status != "ok":
                raise ModelError(row.error)
            times[name] = time.time()
        print(json.dumps({**times, "peak_host_gb": memory.peak_gb}), flush=True)


class _OwnMemory:
    """Watches this process's resident memory that belongs to no file, by sampling: Linux keeps no peak of it."""

    def __init__(self) -> None:
        self.peak_gb: float | None = None
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            parts = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status.read_text(), re.MULTILINE)
            self.peak_gb = max(self.peak_gb or 0.0, sum(map(int, parts)) * 1024 / 1e9)
            time.sleep(_SAMPLED_EVERY_S)


if __name__ == "__main__":
    _main(sys.argv[1:])
