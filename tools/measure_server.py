"""Serves with models that wait as long as a GPU would compute: what the server itself costs a question.

    python tools/measure_server.py [--port 8000] [--one-process]                     # then, from another terminal:
    python tools/load_server.py load http://127.0.0.1:8000/v1 --clients 64 --stream

    kill -USR1 PID                                                                   # as it printed it

Times are those of the 8B shape on an H100 (docs/performance.md). The engine has a process of its own, as in `serve`, or
with --one-process that of the server. At SIGUSR1 each process prints the questions answered since the last time, the
milliseconds of processor that its threads took for each, and its memory. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idefics_cli.config import ModelSettings, PageSettings, ServeSettings, Split
from idefics_cli.engine import DeferredEngine, open_model
from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.engine.checkpoint import open_checkpoint
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.encoder_cache import EncoderCache
from idefics_cli.engine.native.engine import NativeEngine
from idefics_cli.engine.native.memory_plan import GPU_SEQUENCES, PREFILL_TOKENS, MemoryPlan
from idefics_cli.engine.native.sequence import Output
from idefics_cli.engine.native.sequence import Sequence as Asked
from idefics_cli.engine.native.timer import Timer
from idefics_cli.engine_process.parent import EngineProcess, engine_in_process
from idefics_cli.records import Answer, Crop, Request
from idefics_cli.server.serving import Server, ServerSettings

_ENCODE, _PREFILL, _DECODE = 0.065, 0.025, 0.0071  # seconds a page, a batch of a prefill, a step
_PREFIX, _SUFFIX = 336, 32  # tokens of a page and of a question
_TOKENS = 16
_PLAN = MemoryPlan(GPU_SEQUENCES, GPU_SEQUENCES * 450, 1, PREFILL_TOKENS)


@dataclass(frozen=True, slots=True)
class PacedStep:
    """A step, or a prefill, of a device that does one thing after another."""

    sequences: dict[int, Asked]
    ends: float
    done: list[int]
    decoding: Timer | None = None


class PacedRunner:
    """Stands where the models are; sleeps, and takes the same token again and again."""

    device = torch.device("cpu")
    max_pages = 1

    def __init__(self, rules: object) -> None:
        self.features, self.rules, self.plan = EncoderCache(), rules, _PLAN
        self.encoder = self
        self._lengths: dict[int, int] = {}
        self._free_at = 0.0

    def allocate(self, plan: MemoryPlan, slots: int) -> None:
        """Nothing is: slots are numbers."""

    def record_graph(self) -> None:
        """Nothing is."""

    def release_memory(self) -> None:
        """Nothing is."""

    def encode(self, pages: Sequence[Sequence[Crop]]) -> list[Tensor]:
        self._free_at = max(self._free_at, time.monotonic()) + _ENCODE * len(pages)
        time.sleep(self._free_at - time.monotonic())
        return [torch.empty(0) for _ in pages]

    def prefill(self, admitted: Mapping[int, Asked], sharing: object) -> PacedStep:  # noqa: ARG002
        tokens = 0
        for index, sequence in admitted.items():
            assert sequence.prefix is not None
            tokens += _SUFFIX if sequence.prefix.is_filled else _PREFIX + _SUFFIX
            sequence.prefix.is_filled = True
            self._lengths[index] = 1
        return self._launched(-(-tokens // PREFILL_TOKENS) * _PREFILL, dict(admitted))

    def decode(self, running: Mapping[int, Asked]) -> PacedStep | None:
        stepped = {index: sequence for index, sequence in running.items() if self._lengths[index] < _TOKENS}
        for index in stepped:
            self._lengths[index] += 1
        return self._launched(_DECODE, stepped) if stepped else None

    def read(self, launched: PacedStep) -> dict[int, Output]:
        time.sleep(max(0.0, launched.ends - time.monotonic()))
        output = Output((7,) * _TOKENS, is_complete=True, logprob=-1.0, logprobs=(-0.1,) * _TOKENS)
        return dict.fromkeys(launched.done, output)

    def tokens_so_far(self, index: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        return (7,) * self._lengths[index], (-0.1,) * self._lengths[index]

    def _launched(self, seconds: float, sequences: dict[int, Asked]) -> PacedStep:
        self._free_at = max(self._free_at, time.monotonic()) + seconds
        done = [index for index in sequences if self._lengths[index] == _TOKENS]
        return PacedStep(sequences, self._free_at, done)


class PacedEngine:
    """The engine with all but its models."""

    def __init__(self, info: EngineInfo) -> None:
        settings = _settings()
        family = native_family_of(open_checkpoint(settings))
        self.info = info
        rules = family.generation(settings)
        core = EngineCore(PacedRunner(rules), _PLAN, is_shared=True, is_ahead=True)  # type: ignore[arg-type]
        self._engine = NativeEngine(core, self.info, family.prompt_builder(settings.prompt), rules, 2048)

    def start(self) -> None:
        """It runs."""

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def steps(self) -> int:
        return self._engine.steps

    def submit(self, request: Request) -> Future[Answer]:
        return self._engine.submit(request)

    def close(self) -> None:
        self._engine.close()


class Counted(DeferredEngine):
    """Counts answers, and says at SIGUSR1 what they took of this process."""

    def __init__(self, engine: DeferredEngine, name: str) -> None:
        super().__init__(engine.info, lambda _: engine.load())
        self._name = name
        self._answered, self._reported, self._ticks = 0, 0, Counter[str]()
        signal.signal(signal.SIGUSR1, lambda *_: self._report())

    def submit(self, request: Request) -> Future[Answer]:
        answer = super().submit(request)
        answer.add_done_callback(self._count)
        return answer

    def _count(self, answer: Future[Answer]) -> None:
        self._answered += not answer.cancelled()

    def _report(self) -> None:
        """Print what was spent since the last time."""
        if isinstance(loaded := self.load(), EngineProcess):
            os.kill(loaded.pid, signal.SIGUSR1)
        names = {thread.native_id: thread.name.rstrip("-_0123456789") for thread in threading.enumerate()}
        ticks: Counter[str] = Counter()
        for task in Path("/proc/self/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks[names.get(int(task.name), "other")] += int(fields[11]) + int(fields[12])
        count, spent = max(1, self._answered - self._reported), ticks - self._ticks
        each = ", ".join(f"{name} {10 * one / count:.2f}" for name, one in spent.most_common())
        memory = re.findall(r"(RssAnon|RssShmem):\s+(\d+)", Path("/proc/self/status").read_text())
        print(
            f"{self._name}: {count} questions; {10 * sum(spent.values()) / count:.2f} ms of processor a question:",
            f"{each};",
            ", ".join(f"{name} {int(kilobytes) / 1e3:.0f} MB" for name, kilobytes in memory),
            file=sys.stderr,
            flush=True,
        )
        self._reported, self._ticks = self._answered, ticks


def open_paced(settings: ModelSettings) -> DeferredEngine:  # noqa: ARG001
    """Open the engine, in whichever process it is to run; its main thread calls it."""
    info = paced_info()
    return Counted(DeferredEngine(info, lambda _: PacedEngine(info)), "engine")


def paced_info() -> EngineInfo:
    return EngineInfo(
        "paced", open_model(_settings()).info.settings, 2 * GPU_SEQUENCES, Idefics2ImageProcessor(980, 378)
    )


def _settings() -> ModelSettings:
    return ModelSettings("tiny", max_new_tokens=_TOKENS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--one-process", action="store_true")
    options = parser.parse_args()
    from measure_server import open_paced as open_there  # not __main__, which the engine's process does not have

    def open_with(settings: ModelSettings, **given: Any) -> DeferredEngine:
        """Open the engine as the server wants it."""
        if options.one_process:
            return open_paced(settings)
        decode = open_model(_settings()).decode
        return Counted(engine_in_process(open_there, settings, paced_info(), decode, **given), "server")

    server = Server(
        ServerSettings(ModelSettings("paced"), PageSettings(split=Split.ALWAYS), ServeSettings(port=options.port)),
        open_with=open_with,
        on_ready=lambda place: print(os.getpid(), place, flush=True),
    )
    server.run()
