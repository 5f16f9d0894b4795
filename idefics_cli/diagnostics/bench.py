"""Measures how fast pages and questions are answered here, by the engine and by plain transformers, in one run."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import ModelSettings, PageSettings, RunSettings, Split
from idefics_cli.diagnostics.environment import versions
from idefics_cli.diagnostics.flops import page_flops, token_flops
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.diagnostics.synthetic_pages import first_pages, write_letters
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine import engine_info, hardware
from idefics_cli.engine.base import Engine
from idefics_cli.engine.checkpoint import open_checkpoint
from idefics_cli.engine.device import choose_device
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.native.loading import load_native, random_source
from idefics_cli.engine.quantization import effective_quantize
from idefics_cli.engine.transformers import TransformersModel
from idefics_cli.errors import InputError, UsageError
from idefics_cli.pipeline import run
from idefics_cli.records import Answer, Document, Job, PreparedPage, Question, Request

_REFERENCE_BATCH = 8
_PAGES = {"cpu": 8, "mps": 8, "cuda": 256}
_REPEATS = 3
_MOST_ON_CPU = 3e9  # weights of a model whose measurement ends within minutes


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured."""

    model: ModelSettings
    pages: int | None = None
    """Distinct pages of a measurement of the engine; the slower ways take fewer; None chooses."""
    questions: int = 10
    """Per page in the second measurement; in the first it is one."""
    random_weights: bool = False
    """Whether the model has random weights, in the shape of a published checkpoint."""
    reference: bool = True
    """Whether plain transformers is measured too."""
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of answering; stages are the device's time."""

    way: str
    """engine, engine from disk, transformers snippet, or transformers loop."""
    split: bool
    questions_per_page: int
    pages: int
    seconds: float
    """The median of the repeats."""
    pages_per_s: float
    questions_per_s: float
    spread: float = 0.0
    """The longest repeat over the shortest, less one: above a tenth, something else uses the machine."""
    vision_ms: float | None = None
    """Tower and connector, per page."""
    prefill_ms: float | None = None
    """Prompts, per question."""
    decode_step_ms: float | None = None
    """One token of every sequence that is decoded together."""
    batch_size: int | None = None
    """Sequences decoded together."""
    mfu: float | None = None
    """Operations of the model over those that the measured peak allows in the time."""
    peak_gb: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, where, and with what."""

    device: str
    versions: dict[str, str]
    model: str
    dtype: str
    quantize: str
    new_tokens: int
    peak_tflops: float
    load_s: float
    first_answer_s: float
    """From the loaded weights to the first answer, nothing warm."""
    measurements: list[Measurement]


class Benchmark:
    """A model on its device, and pages to ask it about."""

    def __init__(self, settings: BenchSettings, folder: Path) -> None:
        """Open the checkpoint.

        Args:
            settings: what is measured.
            folder: where pages are written.

        Raises:
            UsageError: a large shape without a GPU, or one that is not known.
            ModelError: the checkpoint can't be run.

        """
        self._folder = folder
        if not settings.model.quantize.is_native:
            raise UsageError("bench measures the native engine: --quantize none, fp8, int8 or int4")
        self._choice = choose_device(settings.model)
        is_random = settings.random_weights
        self._checkpoint = full_shape_checkpoint(settings.model) if is_random else open_checkpoint(settings.model)
        quantize = effective_quantize(settings.model.quantize, self._checkpoint.stored, settings.model.model)
        self._settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, quantize=quantize))
        self._family = native_family_of(self._checkpoint, "bench")
        numbers = sum(map(math.prod, self._family.config.weight_shapes().values()))
        if is_random and self._choice.device == "cpu" and numbers > _MOST_ON_CPU:
            raise UsageError(f"--random-weights: this shape, {numbers / 1e9:.1f}B, needs a GPU; --model names others")
        self._new_tokens = self._family.generation(settings.model).max_new_tokens
        self._pages = settings.pages or _PAGES[self._choice.device]
        self._peak_tflops = hardware.peak_tflops(self._choice)
        self._asked = 0

    def run(self) -> Iterator[Measurement | Report]:
        """Measure one way after another; the report comes last."""
        settings = self._settings
        paths = write_letters(self._folder, self._pages)
        done: list[Measurement] = []
        with PagePool(PageSettings(split=Split.ALWAYS, workers=settings.workers)) as pool:
            documents = [Document(path.name, str(path)) for path in paths]
            pages = first_pages(documents, self._family.image_processor, pool)
            whole = [dataclasses.replace(page, crops=page.crops[-1:], columns=0) for page in pages]
            if settings.reference:
                for measurement in self._reference(pages, whole):
                    done.append(measurement)
                    yield measurement
            started = time.perf_counter()
            engine = self._load()
            load_s = time.perf_counter() - started
            first_answer_s = self._seconds(engine, pages[:1], 1)
            self._seconds(engine, pages[: max(1, len(pages) // 4)], 1)
            for questions in (1, settings.questions):
                for some in (pages, whole):
                    done.append(self._engine(engine, some, questions))
                    yield done[-1]
            done.append(self._from_disk(engine, paths, pool))
            yield done[-1]
            engine.close()
        yield Report(
            device=hardware.device_name(self._choice),
            versions=versions(("torch", "transformers")),
            model=self._checkpoint.name,
            dtype=self._choice.dtype,
            quantize=str(settings.model.quantize),
            new_tokens=self._new_tokens,
            peak_tflops=self._peak_tflops,
            load_s=load_s,
            first_answer_s=first_answer_s,
            measurements=done,
        )

    def _load(self) -> Engine:
        info = engine_info(self._settings.model, self._checkpoint, self._family, self._choice)
        return load_native(
            self._checkpoint,
            self._family,
            self._settings.model,
            self._choice,
            info,
            source=random_source(self._family, self._choice) if self._settings.random_weights else None,
        )

    def _engine(self, engine: Engine, pages: Sequence[PreparedPage], questions: int) -> Measurement:
        """Measure the engine over pages that are in memory."""
        pages = pages if questions == 1 else pages[: max(1, 2 * len(pages) // questions)]
        hardware.reset_peak_memory(self._choice)
        times, answers = [], []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            answers = self._answers(engine, pages, questions)
            times.append(time.perf_counter() - started)
        seconds = statistics.median(times)
        batch_size = max(answer.batch_size for answer in answers)
        steps = max(1, self._new_tokens - 1)
        full = [answer.decode_ms * answer.batch_size for answer in answers if answer.batch_size == batch_size]
        return Measurement(
            way="engine",
            split=pages[0].split,
            questions_per_page=questions,
            pages=len(pages),
            seconds=seconds,
            pages_per_s=len(pages) / seconds,
            questions_per_s=len(answers) / seconds,
            spread=max(times) / min(times) - 1,
            vision_ms=sum(answer.vision_ms for answer in answers) / len(pages),
            prefill_ms=sum(answer.prefill_ms for answer in answers) / len(answers),
            decode_step_ms=statistics.fmean(full) / steps,
            batch_size=batch_size,
            mfu=self._flops(pages, answers) / seconds / self._peak_tflops / 1e12,
            peak_gb=hardware.peak_memory_gb(self._choice),
        )

    def _from_disk(self, engine: Engine, paths: Sequence[Path], pool: PagePool) -> Measurement:
        """Measure the whole pipeline, from PDFs in a folder to rows."""
        jobs = [Job(Question("What is the total?", "benchmark"), Document(str(path), str(path))) for path in paths]
        settings = RunSettings(model=self._settings.model)
        hardware.reset_peak_memory(self._choice)
        started = time.perf_counter()
        rows = list(run(jobs, engine, pool, settings))  # once: the engine knows the pages afterwards
        seconds = time.perf_counter() - started
        failed = [row.error for row in rows if row.status != "ok"]
        if failed:
            raise InputError(f"a page of the benchmark failed: {failed[0]}")
        return Measurement(
            way="engine from disk",
            split=True,
            questions_per_page=1,
            pages=len(paths),
            seconds=seconds,
            pages_per_s=len(rows) / seconds,
            questions_per_s=len(rows) / seconds,
            peak_gb=hardware.peak_memory_gb(self._choice),
        )

    def _reference(self, pages: Sequence[PreparedPage], whole: Sequence[PreparedPage]) -> Iterator[Measurement]:
        """Measure plain transformers: as its documentation shows it, and in batches with pixels made on the device."""
        random_weights = self._settings.random_weights
        model = TransformersModel(
            self._checkpoint, self._family, self._settings.model, self._choice, random_weights=random_weights
        )
        for way, batch, count in (("snippet", 1, 4), ("loop", _REFERENCE_BATCH, 3 * _REFERENCE_BATCH)):
            model.is_on_host = batch == 1
            for pages_of_kind in (pages, whole):
                some = pages_of_kind[:count]
                model.answer(self._requests(some[:batch], 1))  # warms up
                hardware.reset_peak_memory(self._choice)
                started = time.perf_counter()
                for start in range(0, len(some), batch):
                    model.answer(self._requests(some[start : start + batch], 1))
                seconds = time.perf_counter() - started
                yield Measurement(
                    way=f"transformers {way}",
                    split=some[0].split,
                    questions_per_page=1,
                    pages=len(some),
                    seconds=seconds,
                    pages_per_s=len(some) / seconds,
                    questions_per_s=len(some) / seconds,
                    batch_size=batch,
                    peak_gb=hardware.peak_memory_gb(self._choice),
                )
        del model
        hardware.free_memory_of_dropped_models()

    def _seconds(self, engine: Engine, pages: Sequence[PreparedPage], questions: int) -> float:
        started = time.perf_counter()
        self._answers(engine, pages, questions)
        return time.perf_counter() - started

    def _answers(self, engine: Engine, pages: Sequence[PreparedPage], questions: int) -> list[Answer]:
        futures = [engine.submit(request) for request in self._requests(pages, questions)]
        answers = [future.result() for future in futures]
        failed = [answer.failure for answer in answers if answer.failure]
        if failed:
            raise InputError(f"a question of the benchmark failed: {failed[0]}")
        return answers

    def _requests(self, pages: Sequence[PreparedPage], questions: int) -> list[Request]:
        """Ask questions of about 20 tokens; pages are new to the engine each time."""
        requests: list[Request] = []
        for page in pages:
            self._asked += 1
            requests += [
                Request(f"What is the total {number}?", (page,), (f"benchmark {self._asked}",))
                for number in range(questions)
            ]
        return requests

    def _flops(self, pages: Sequence[PreparedPage], answers: Sequence[Answer]) -> float:
        """Count the operations that these answers need at the least: a page's prompt is computed once."""
        config, patch = self._family.config, self._family.config.vision.patch_size
        vision = sum(
            page_flops(config, [(c.shape[0] // patch) * (c.shape[1] // patch) for c in page.crops]) for page in pages
        )
        page_tokens = len(pages[0].crops) * (config.image_seq_len + 1)
        tokens = len(pages) * page_tokens + sum(a.prompt_tokens - page_tokens + a.new_tokens for a in answers)
        return float(vision + tokens * token_flops(config))
