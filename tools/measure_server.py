"""Serves with models that wait as long as a GPU would compute: what the server itself costs a question.

    python tools/measure_server.py [PORT]                                            # then, from another terminal:
    python tools/load_server.py load http://127.0.0.1:8000/v1 --clients 64 --stream

    pkill -USR1 -f measure_server

Times are those of the 8B shape on an H100 (docs/performance.md). At SIGUSR1 it prints the questions answered since the
last time, and the milliseconds of processor that the server's threads took for each. Ctrl-C ends it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from idefics_cli.config import ModelSettings, PageSettings, ServeSettings, Split
from idefics_cli.engine import DeferredEngine, open_engine
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
from idefics_cli.records import Answer, Crop, Request
from idefics_cli.server.serving import Server, ServerSettings

_ENCODE, _PREFILL, _DECODE = 0.065, 0.025, 0.0071  # seconds a page, a batch of a prefill, a step
_PREFIX, _SUFFIX = 336, 32  # tokens of a page and of a question
_TOKENS = 16
_PLAN = MemoryPlan(GPU_SEQUENCES, GPU_SEQUENCES * 450, 1, PREFILL_TOKENS)


class PacedRunner:
    """Stands where the models are; sleeps, and takes the same token again and again."""

    device = torch.device("cpu")
    max_pages = 1

    def __init__(self, rules: object) -> None:
        self.features, self.rules, self.plan = EncoderCache(), rules, _PLAN
        self.encoder = self
        self._lengths: dict[int, int] = {}

    def allocate(self, plan: MemoryPlan, slots: int) -> None:
        """Nothing is: slots are numbers."""

    def record_graph(self) -> None:
        """Nothing is."""

    def release_memory(self) -> None:
        """Nothing is."""

    def encode(self, pages: Sequence[Sequence[Crop]]) -> list[Tensor]:
        time.sleep(_ENCODE * len(pages))
        return [torch.empty(0) for _ in pages]

    def prefill(self, admitted: Mapping[int, Asked], sharing: object) -> None:  # noqa: ARG002
        tokens = 0
        for index, sequence in admitted.items():
            assert sequence.prefix is not None
            tokens += _SUFFIX if sequence.prefix.is_filled else _PREFIX + _SUFFIX
            sequence.prefix.is_filled = True
            self._lengths[index] = 1
        time.sleep(-(-tokens // PREFILL_TOKENS) * _PREFILL)

    def decode(self, running: Mapping[int, Asked]) -> None:
        time.sleep(_DECODE)
        for index in running:
            self._lengths[index] += 1

    def finished(self, running: Mapping[int, Asked]) -> dict[int, Output]:
        return {
            index: Output((7,) * _TOKENS, is_complete=True, logprob=-1.0, logprobs=(-0.1,) * _TOKENS)
            for index in running
            if self._lengths[index] == _TOKENS
        }

    def watched(self, running: Mapping[int, Asked]) -> dict[Asked, tuple[tuple[int, ...], tuple[float, ...]]]:
        return {
            sequence: ((7,) * self._lengths[index], (-0.1,) * self._lengths[index])
            for index, sequence in running.items()
            if sequence.is_watched
        }


class PacedEngine:
    """The engine with all but its models; counts its answers."""

    def __init__(self) -> None:
        settings = ModelSettings("tiny", max_new_tokens=_TOKENS)
        family = native_family_of(open_checkpoint(settings))
        assert family is not None
        told = open_engine(settings).info.settings
        processor = Idefics2ImageProcessor(980, 378)
        self.info = EngineInfo("paced", told, 2 * GPU_SEQUENCES, processor)
        rules = family.generation(settings)
        core = EngineCore(PacedRunner(rules), _PLAN)  # type: ignore[arg-type]
        self._engine = NativeEngine(core, self.info, family.prompt_builder(settings.prompt), rules, 2048)
        self.answered, self.reported, self.ticks = 0, 0, Counter[str]()

    def start(self) -> None:
        """It runs."""

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def steps(self) -> int:
        return self._engine.steps

    def submit(self, request: Request) -> Future[Answer]:
        answer = self._engine.submit(request)
        answer.add_done_callback(self._count)
        return answer

    def close(self) -> None:
        self._engine.close()

    def _count(self, answer: Future[Answer]) -> None:
        self.answered += not answer.cancelled()


def _report(engine: PacedEngine) -> None:
    """Print what was spent since the last time."""
    names = {thread.native_id: thread.name.rstrip("-_0123456789") for thread in threading.enumerate()}
    ticks: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[names.get(int(task.name), "other")] += int(fields[11]) + int(fields[12])
    count = engine.answered - engine.reported
    print(f"{count} questions; milliseconds of processor a question, by thread:", end=" ")
    spent = (ticks - engine.ticks).most_common()
    print(", ".join(f"{name} {10 * one / max(1, count):.2f}" for name, one in spent), flush=True)
    engine.reported, engine.ticks = engine.answered, ticks


if __name__ == "__main__":
    paced = PacedEngine()
    serve = ServeSettings(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
    settings = ServerSettings(ModelSettings("paced"), PageSettings(split=Split.ALWAYS), serve)
    loaded = DeferredEngine(paced.info, lambda _: paced)
    server = Server(settings, open_with=lambda _: loaded, on_ready=lambda place: print(place, flush=True))
    signal.signal(signal.SIGUSR1, lambda *_: _report(paced))
    server.run()
