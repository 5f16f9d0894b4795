"""Measures how fast pages and questions are answered here, by the engine and by plain transformers, in one run."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import Device, ModelSettings, PageSettings, RunSettings, Split
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, result_of
from idefics_cli.engine import machine
from idefics_cli.engine.checkpoint import Checkpoint, load_model, open_checkpoint, open_full_shape, random_model
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.engine.schedule import CPU_ROWS, GPU_ROWS
from idefics_cli.engine.stock import StockEngine
from idefics_cli.errors import InputError, UsageError
from idefics_cli.letters import write_letters
from idefics_cli.pipeline import run
from idefics_cli.records import Answer, Document, Job, PreparedPage, Question, Request

_STOCK_BATCH = 8
_PAGES = {"cpu": 8, "cuda": 256}
_ROWS = {"cpu": CPU_ROWS, "cuda": GPU_ROWS}  # at which a decode step of the stock model is measured
_CROP_TOKENS, _QUESTION_TOKENS = 65, 30


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    model: ModelSettings
    pages: int = 0
    """Distinct pages of a measurement of the engine; the slower ways take fewer; 0 chooses."""
    questions: int = 10
    """A page has one question, and in a second measurement this many."""
    random_weights: bool = False
    """Whether the model has the shape of the 8B checkpoint and random weights."""
    stock: bool = True
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of answering, once; stages are the device's time."""

    way: str
    """engine, engine from disk, stock snippet, or stock loop."""
    split: bool
    questions_a_page: int
    pages: int
    seconds: float
    pages_a_second: float
    questions_a_second: float
    vision_ms: float | None = None
    """Tower and connector, a page."""
    prefill_ms: float | None = None
    """Prompts, a question."""
    decode_step_ms: float | None = None
    """One token of every row that is decoded together; the stock loop's at the engine's number of rows."""
    rows: int | None = None
    """Decoded together in the measured pages and questions."""
    matrix_share: float | None = None
    """Operations of the model over those that the measured matrix rate allows in the time."""
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
    matrix_tflops: float
    load_s: float
    first_answer_s: float
    """From the loaded weights to the first answer, nothing warm."""
    warm_up_s: float
    """Of the first window with kernels: compiling and recording included."""
    measurements: list[Measurement]


class Benchmark:
    """A model on its device, and pages to ask it about."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Load the model.

        Args:
            settings: what is measured.
            folder: where pages are written.

        """
        self._settings, self._folder = settings, folder
        started = time.perf_counter()
        if settings.random_weights:
            if settings.model.device is Device.CPU:
                raise UsageError("--random-weights has the shape of the 8B model and needs a GPU")
            self._checkpoint: Checkpoint = open_full_shape(settings.model)
            self._model = random_model(self._checkpoint)
        else:
            self._checkpoint = open_checkpoint(settings.model)
            self._model = load_model(self._checkpoint)
        self._load_s = time.perf_counter() - started
        self._device = self._checkpoint.device
        self._pages = settings.pages or _PAGES[self._device.type]
        self._rows = settings.model.batch_size or _ROWS[self._device.type]
        self._numbers = 0
        self._rate = machine.matrix_rate(self._device, self._checkpoint.dtype)

    def run(self) -> Iterator[Measurement | Report]:
        """Measure one way after another; the report comes last."""
        settings = self._settings
        paths = write_letters(self._folder, self._pages)
        done: list[Measurement] = []
        with PagePool(PageSettings(split=Split.ALWAYS, workers=settings.workers)) as pool:
            pages = prepared_pages(paths, pool, self._checkpoint)
            whole = [dataclasses.replace(page, crops=page.crops[-1:]) for page in pages]
            if settings.stock:
                for measurement in self._stock(pages, whole):
                    done.append(measurement)
                    yield measurement
            engine = Idefics2Engine(settings.model, self._checkpoint, self._model)
            first_answer_s = self._seconds(engine, pages[:1])
            warm_up_s = self._seconds(engine, pages)
            for questions in (1, settings.questions):
                for some in (pages, whole):
                    done.append(self._engine(engine, some, questions))
                    yield done[-1]
            done.append(self._from_disk(engine, paths, pool))
            yield done[-1]
        yield Report(
            device=machine.device_name(self._device),
            versions=machine.versions(),
            model="random weights, 8B shape" if settings.random_weights else settings.model.model,
            dtype=str(self._checkpoint.dtype).removeprefix("torch."),
            quantize=str(settings.model.quantize),
            new_tokens=settings.model.max_new_tokens,
            matrix_tflops=self._rate,
            load_s=self._load_s,
            first_answer_s=first_answer_s,
            warm_up_s=warm_up_s,
            measurements=done,
        )

    def _engine(self, engine: Idefics2Engine, pages: Sequence[PreparedPage], questions: int) -> Measurement:
        """Measure the engine over pages that are in memory."""
        pages = pages if questions == 1 else pages[: max(1, 2 * len(pages) // questions)]
        machine.reset_peak(self._device)
        started = time.perf_counter()
        answers = list(engine.answer(self._requests(pages, questions)))
        seconds = time.perf_counter() - started
        rows = max(answer.batch_size for answer in answers)
        steps = self._settings.model.max_new_tokens - 1
        return Measurement(
            way="engine",
            split=pages[0].split,
            questions_a_page=questions,
            pages=len(pages),
            seconds=seconds,
            pages_a_second=len(pages) / seconds,
            questions_a_second=len(answers) / seconds,
            vision_ms=sum(answer.vision_ms for answer in answers) / len(pages),
            prefill_ms=sum(answer.prefill_ms for answer in answers) / len(answers),
            decode_step_ms=_mean([a.decode_ms * a.batch_size for a in answers if a.batch_size == rows]) / max(1, steps),
            rows=rows,
            matrix_share=self._flops(pages, answers) / seconds / self._rate / 1e12,
            peak_gb=machine.peak_gb(self._device),
        )

    def _from_disk(self, engine: Idefics2Engine, paths: Sequence[Path], pool: PagePool) -> Measurement:
        """Measure the whole pipeline, from PDFs in a folder to rows."""
        for path in paths[: pool.workers]:  # the processes are there before the clock starts
            result_of(pool.inspect(Document(str(path), str(path))), DocumentInfo)
        jobs = [Job(Question("What is the total?", "benchmark"), Document(str(path), str(path))) for path in paths]
        machine.reset_peak(self._device)
        started = time.perf_counter()
        rows = list(run(jobs, engine, pool, RunSettings(model=self._settings.model)))
        seconds = time.perf_counter() - started
        failed = [row.error for row in rows if row.status != "ok"]
        if failed:
            raise InputError(f"a page of the benchmark failed: {failed[0]}")
        return Measurement(
            way="engine from disk",
            split=True,
            questions_a_page=1,
            pages=len(paths),
            seconds=seconds,
            pages_a_second=len(rows) / seconds,
            questions_a_second=len(rows) / seconds,
            vision_ms=sum(row.vision_ms or 0.0 for row in rows) / len(rows),
            prefill_ms=sum(row.prefill_ms or 0.0 for row in rows) / len(rows),
            peak_gb=machine.peak_gb(self._device),
        )

    def _stock(self, pages: Sequence[PreparedPage], whole: Sequence[PreparedPage]) -> Iterator[Measurement]:
        """Measure plain transformers: as its documentation shows it, and in batches with pixels made on the device."""
        for way, batch, count in (("stock snippet", 0, 4), ("stock loop", _STOCK_BATCH, 3 * _STOCK_BATCH)):
            settings = dataclasses.replace(self._settings.model, batch_size=batch)
            engine = StockEngine(settings, self._checkpoint, self._model, on_host=batch == 0)
            for some in (pages, whole):
                some = some[:count]
                list(engine.answer(self._requests(some[: max(1, batch)], 1)))  # warms up
                machine.reset_peak(self._device)
                requests = self._requests(some, 1)
                started = time.perf_counter()
                answers = list(engine.answer(requests))
                seconds = time.perf_counter() - started
                peak = machine.peak_gb(self._device)
                vision_ms, step_ms = None, None
                if batch:  # both ways have the same stages
                    length = some[0].split * 4 * _CROP_TOKENS + _CROP_TOKENS + _QUESTION_TOKENS
                    vision_ms, step_ms = engine.stage_ms(requests[0], rows=self._rows, length=length)
                yield Measurement(
                    way=way,
                    split=some[0].split,
                    questions_a_page=1,
                    vision_ms=vision_ms,
                    decode_step_ms=step_ms,
                    pages=len(some),
                    seconds=seconds,
                    pages_a_second=len(some) / seconds,
                    questions_a_second=len(answers) / seconds,
                    rows=max(1, batch),
                    peak_gb=peak,
                )

    def _seconds(self, engine: Idefics2Engine, pages: Sequence[PreparedPage]) -> float:
        started = time.perf_counter()
        list(engine.answer(self._requests(pages, 1)))
        return time.perf_counter() - started

    def _requests(self, pages: Sequence[PreparedPage], questions: int) -> list[Request]:
        """Ask questions of about 20 tokens; pages are new to the engine each time."""
        requests: list[Request] = []
        for page in pages:
            self._numbers += 1
            for number in range(questions):
                words = f"What is the total {number}?"
                requests.append(Request(len(requests), words, (page,), (-self._numbers,)))  # the pipeline counts up
        return requests

    def _flops(self, pages: Sequence[PreparedPage], answers: Sequence[Answer]) -> float:
        """Count the operations that these answers need at the least: a page's prompt is computed once."""
        config = self._checkpoint.config
        patch = config.vision_config.patch_size
        vision: float = sum(
            machine.page_flops(config, [(c.shape[0] // patch) * (c.shape[1] // patch) for c in page.crops])
            for page in pages
        )
        a_page = len(pages[0].crops) * (self._checkpoint.processor.image_seq_len + 1)
        tokens = len(pages) * a_page + sum(a.prompt_tokens - a_page + a.new_tokens for a in answers)
        return float(vision + tokens * machine.token_flops(config))


def prepared_pages(paths: Sequence[Path], pool: PagePool, checkpoint: Checkpoint) -> list[PreparedPage]:
    """Rasterize and cut the first page of each document."""
    futures = deque(pool.prepare(Document(path.name, str(path)), 1, checkpoint.geometry) for path in paths)
    pages = []
    while futures:
        page = result_of(futures.popleft(), PreparedPage)
        # Copies: the places of the pages themselves are for those that are measured on their way from disk.
        pages.append(dataclasses.replace(page, crops=tuple(crop.copy() for crop in page.crops)))
    return pages


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
