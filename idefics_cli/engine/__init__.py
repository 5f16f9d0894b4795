"""Engines that answer questions about pages. Only `open_engine` knows which; torch is imported with the first load."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib.metadata import version

from idefics_cli.config import Attention, ModelSettings, Quantize, flag_of
from idefics_cli.engine.attention import check_attention
from idefics_cli.engine.base import EngineInfo, EngineStats, LoadedEngine
from idefics_cli.engine.bitsandbytes import check_bitsandbytes
from idefics_cli.engine.checkpoint import Checkpoint, open_checkpoint
from idefics_cli.engine.device import DeviceChoice, choose_device
from idefics_cli.engine.families import family_of
from idefics_cli.engine.families.base import Family
from idefics_cli.engine.families.generation import GenerationRules, generation_flags
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.families.idefics3 import Idefics3Family
from idefics_cli.engine.files import reading
from idefics_cli.engine.quantization import effective_quantize
from idefics_cli.errors import ModelError
from idefics_cli.records import Answer, Request

_CAPACITY = {"cpu": 32, "mps": 32, "cuda": 128}
"""Requests worth having submitted: enough that the device seldom waits, few enough that their pages fit the host."""


def open_engine(settings: ModelSettings) -> DeferredEngine:
    """Open the engine for a checkpoint; its weights are loaded with `start` or the first request.

    Raises:
        ModelError: no such checkpoint, one that can't be run, or no such device.
        UsageError: the prompt template is none for this checkpoint.

    """
    opened = open_model(settings)
    return DeferredEngine(opened.info, opened.load)


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedModel:
    """A checkpoint with what is known of its engine before torch is imported."""

    info: EngineInfo
    decode: Callable[[Sequence[int]], str]
    """That of its `GeneratedTokens`."""
    load: Callable[[Callable[[], bool]], LoadedEngine]
    """Loads the weights; see `DeferredEngine`."""


def open_model(settings: ModelSettings) -> OpenedModel:
    """Open a checkpoint; raises as `open_engine`."""
    # Threads of torch that spin while they wait take the cores of page processes: on a busy machine that is what
    # takes most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    checkpoint = open_checkpoint(settings)
    quantize = effective_quantize(settings.quantize, checkpoint.stored, settings.model)
    settings = dataclasses.replace(settings, quantize=quantize)
    choice = choose_device(settings)
    with reading(checkpoint.name):
        family = family_of(checkpoint)
        decode = family.prompt_builder(settings.prompt).decode
        gaps = native_gaps(settings, family, family.generation(settings))
        check_attention(settings, choice, is_native=not gaps)
        info = engine_info(settings, checkpoint, family, choice)

    def load(is_closed: Callable[[], bool]) -> LoadedEngine:
        threading.Thread(target=checkpoint.read_ahead, name="read ahead", daemon=True).start()
        engine: LoadedEngine
        if gaps:
            from idefics_cli.engine.transformers import TransformersEngine

            engine = TransformersEngine(checkpoint, family, settings, choice, info)
        else:
            assert isinstance(family, Idefics2Family | Idefics3Family)  # any other has gaps
            from idefics_cli.engine.native.loading import load_native

            engine = load_native(checkpoint, family, settings, choice, info, is_cancelled=is_closed)
        if any(info.settings[name] != digest for name, digest in _content(checkpoint).items()):
            engine.close()
            raise ModelError(f"{settings.model}: its files have changed while they were loaded; start again")
        return engine

    if not settings.quantize.is_native:
        check_bitsandbytes(settings.quantize, settings.model, checkpoint.config.get("model_type"), choice.device)
    elif gaps and settings.quantize is not Quantize.NONE:
        raise ModelError(
            f"{settings.model}: --quantize {settings.quantize} is for what the native engine runs, which does not do "
            f"{', '.join(gaps)}"
        )
    return OpenedModel(info, decode, load)


class DeferredEngine:
    """An engine whose weights are loaded in a thread once they are needed."""

    def __init__(self, info: EngineInfo, load: Callable[[Callable[[], bool]], LoadedEngine]) -> None:
        """Take what loads the weights; it may ask whether they are still wanted, and raise ModelError if not."""
        self.info = info
        self._load, self._lock = load, threading.Lock()
        self._loading: Future[LoadedEngine] | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """See `Engine`."""
        self._start()

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`; waits for the weights."""
        return self.load().submit(request)

    def load(self) -> LoadedEngine:
        """Load the weights, or wait for those that are being loaded; returns the engine that has them.

        Raises:
            ModelError: they can't be loaded, or the engine has been closed.

        """
        return self._start().result()

    @property
    def steps(self) -> int:
        """See `SteppingEngine`; 0 before the weights are loaded."""
        loading = self._loading
        is_loaded = loading is not None and loading.done() and loading.exception() is None
        return loading.result().steps if loading is not None and is_loaded else 0

    def close(self) -> None:
        """See `Engine`; weights that are being loaded are let go at the next tensor, and waited for until then."""
        with self._lock:
            self._closed.set()
            loading, thread = self._loading, self._thread
        if thread is not None:
            thread.join()
        if loading is not None and loading.exception() is None:
            loading.result().close()

    @property
    def stats(self) -> EngineStats:
        """What the engine is doing; nothing while its weights are not loaded."""
        loading = self._loading
        if loading is None or not loading.done() or loading.exception() is not None:
            return EngineStats()
        return loading.result().stats

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        loading = self._loading
        return loading is not None and loading.done() and loading.exception() is None

    def _start(self) -> Future[LoadedEngine]:
        with self._lock:
            if self._loading is None:
                self._loading = Future()
                if self._closed.is_set():
                    self._loading.set_exception(ModelError("the engine has been closed"))
                else:
                    self._thread = threading.Thread(target=self._run, args=(self._loading,), name="load", daemon=True)
                    self._thread.start()
            return self._loading

    def _run(self, loading: Future[LoadedEngine]) -> None:
        try:
            loading.set_result(self._load(self._closed.is_set))
        except BaseException as error:
            loading.set_exception(error)


def native_gaps(settings: ModelSettings, family: Family, rules: GenerationRules) -> tuple[str, ...]:
    """Return what is asked for and the native engine does not do: transformers runs the model then."""
    quantize = () if settings.quantize.is_native else (f"--quantize {settings.quantize}",)
    return (*family.native_gaps, *rules.gaps, *quantize)


def engine_info(settings: ModelSettings, checkpoint: Checkpoint, family: Family, choice: DeviceChoice) -> EngineInfo:
    """Return what a run must know of the engine for a checkpoint."""
    notes, rules = family.notes, family.generation(settings)
    gaps = native_gaps(settings, family, rules)
    if gaps and not notes:
        notes = (f"{checkpoint.name}: run by transformers, since the native engine does not do {', '.join(gaps)}",)
    return EngineInfo(
        checkpoint.name,
        _answer_settings(settings, checkpoint, choice, rules, is_native=not gaps),
        max(_CAPACITY[choice.device], 2 * (settings.batch_size or 0)),
        family.image_processor,
        notes,
        family.split_refusal,
        family.chat_refusal,
        family.examples_refusal,
    )


def _answer_settings(
    settings: ModelSettings, checkpoint: Checkpoint, choice: DeviceChoice, rules: GenerationRules, *, is_native: bool
) -> Mapping[str, str]:
    """Return what of the model can change an answer, by the names that users know."""
    return {
        **_content(checkpoint),
        "--dtype": choice.dtype,
        "--quantize": str(settings.quantize),
        "--prompt": settings.prompt,
        "--max-new-tokens": str(rules.max_new_tokens),
        "engine": "native" if is_native else f"transformers {version('transformers')}",
        **generation_flags(settings, rules),
        **({} if settings.attention is Attention.AUTO else {"--attention": str(settings.attention)}),
        **{flag_of(edge): str(pixels) for edge, pixels in checkpoint.image_size.items()},
    }


def _content(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the digests of what is loaded, by the names that users know."""
    adapter = checkpoint.adapter.digest() if checkpoint.adapter else "none"
    return {"--model (its content)": checkpoint.digest(), "--adapter (its content)": adapter}
