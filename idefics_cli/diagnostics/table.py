"""Measures dtypes, quantizations and attention side by side, ours and transformers' own: behind `bench --table`.

Each measurement is a process of its own, so that none has memory or compiled code of another.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from idefics_cli.config import Attention, Dtype, ModelSettings, PageSettings, Quantize, Split
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.diagnostics.synthetic_pages import first_pages, write_letters
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine import engine_info, hardware
from idefics_cli.engine.attention import check_attention
from idefics_cli.engine.base import Engine
from idefics_cli.engine.bitsandbytes import check_bitsandbytes
from idefics_cli.engine.checkpoint import Checkpoint, open_checkpoint
from idefics_cli.engine.device import choose_device
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.native.loading import load_native, random_source
from idefics_cli.engine.native.memory_plan import weight_bytes
from idefics_cli.engine.quantization import CompressedFormat
from idefics_cli.engine.transformers import TransformersEngine, TransformersModel
from idefics_cli.errors import IdeficsCliError, ModelError, first_line
from idefics_cli.records import Document, PreparedPage, Request

ANSWERS = 20
CAPS_GB = (24, 16, 12, 8)
"""Memory of common cards."""
_ANSWERS_UNDER_A_CAP = 4
_OWN_COUNTERPARTS = {Quantize.BNB_8BIT: Quantize.INT8, Quantize.BNB_4BIT: Quantize.INT4}
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Form:
    """One way of running a checkpoint."""

    is_native: bool
    """Whether the native engine runs it; else transformers does, one question at a time, as the model's card shows."""
    dtype: Dtype
    quantize: Quantize = Quantize.NONE
    attention: Attention = Attention.AUTO


@dataclass(frozen=True, slots=True)
class TableRow:
    """What one form took for `ANSWERS` questions, each about a page of its own."""

    form: Form
    split: bool
    """Whether pages are cut into sub-images."""
    seconds: float | None = None
    """For all answers, once weights are loaded and two questions answered; None where it failed."""
    peak_gb: float | None = None
    """Peak of allocated GPU memory while answering, weights included; None on a CPU."""
    fits_gb: int | None = None
    """The smallest of `CAPS_GB` within which split pages were answered; None where none was, or nothing was tried."""
    failure: str = ""


def table_forms(settings: ModelSettings) -> list[Form]:
    """Return what is measured on this machine: all, or those of a dtype or a quantization that is asked for."""
    device = choose_device(settings).device
    half = (Dtype.BFLOAT16,) if device == "cpu" else (Dtype.BFLOAT16, Dtype.FLOAT16)
    forms = [Form(is_native, dtype) for is_native in (False, True) for dtype in (Dtype.FLOAT32, *half)]
    if importlib.util.find_spec("flash_attn") is not None and device == "cuda":
        forms.append(Form(False, Dtype.BFLOAT16, attention=Attention.FLASH_ATTENTION_2))
    forms.append(Form(False, Dtype.BFLOAT16, attention=Attention.EAGER))
    quantizations = [quantize for quantize in Quantize if quantize is not Quantize.NONE]
    forms += [
        Form(quantize.is_native, half[0] if quantize.is_native else half[-1], quantize) for quantize in quantizations
    ]
    if settings.dtype is not Dtype.AUTO:
        forms = [form for form in forms if form.dtype is settings.dtype]
    if settings.quantize is not Quantize.NONE:
        forms = [form for form in forms if form.quantize is settings.quantize]
    return sorted(forms, key=lambda form: form.is_native)


def measure_table(settings: ModelSettings, forms: Sequence[Form], *, random_weights: bool) -> Iterator[TableRow]:
    """Measure forms one after another, split pages and whole ones.

    Args:
        settings: checkpoint, device and generation; dtype, quantization and attention are the forms'.
        forms: that are measured.
        random_weights: whether the model has random weights, in the shape of the published checkpoint.

    Raises:
        ModelError: the checkpoint can't be run in these forms; one form that fails is a row that says so.
        UsageError: random weights are wanted of a model whose shape is not known.

    """
    _check_checkpoint(settings, random_weights=random_weights)
    is_gpu = choose_device(settings).device == "cuda"
    with tempfile.TemporaryDirectory(prefix="idefics-cli-table-") as folder:
        paths = write_letters(Path(folder), ANSWERS)
        for form in forms:
            asked = _Asked(settings, form, paths, random_weights)
            try:
                measured = _in_a_process(_measure, asked)
            except IdeficsCliError as error:
                yield from (TableRow(form, split, failure=str(error)) for split in (True, False))
                continue
            fits = _smallest_cap(asked, measured.weights_gb) if is_gpu else None
            yield from (dataclasses.replace(row, fits_gb=fits) for row in measured.rows)


def _check_checkpoint(settings: ModelSettings, *, random_weights: bool) -> None:
    """Refuse at once what would fail in each row, or run in another format than the row says."""
    checkpoint = _checkpoint(settings, random_weights=random_weights)
    native_family_of(checkpoint, "bench --table")
    if isinstance(checkpoint.stored, CompressedFormat):
        raise ModelError(
            f"{settings.model}: weights prepared in {checkpoint.stored.kind} have no other format to be measured in: "
            "leave --table out, or name the checkpoint that they were made of"
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a measuring process is told."""

    settings: ModelSettings
    form: Form
    paths: Sequence[Path]
    random_weights: bool
    cap_gb: int | None = None


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a measuring process found."""

    weights_gb: float
    """GPU memory that the weights take."""
    rows: tuple[TableRow, ...]


def _in_a_process(measure: Callable[[_Asked], _Result], asked: _Asked) -> _Result:
    """Run a measurement in a fresh process; raises ModelError where that dies or fails in any way."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(measure, asked).result()
        except BrokenProcessPool as error:
            raise ModelError("the measuring process died: the machine's memory may have been too small") from error
        except IdeficsCliError:
            raise
        except Exception as error:  # one form that fails does not take the others along
            raise ModelError(f"{type(error).__name__}: {first_line(error)}") from error


def _smallest_cap(asked: _Asked, weights_gb: float) -> int | None:
    """Try larger and larger parts of the GPU's memory until split pages are answered."""
    for cap in sorted(cap for cap in CAPS_GB if cap > weights_gb):
        try:
            _in_a_process(_try_cap, dataclasses.replace(asked, cap_gb=cap, paths=asked.paths[:_ANSWERS_UNDER_A_CAP]))
        except IdeficsCliError:
            continue
        return cap
    return None


def _measure(asked: _Asked) -> _Measured:
    """Load, and answer about split pages and about whole ones, in this process; raises ModelError if loading fails."""
    engine, choice = _engine(asked), choose_device(asked.settings)
    rows = []
    for split in (True, False):
        row = TableRow(asked.form, split)
        try:
            pages = _pages(asked.paths, engine, split=split)
            _answer(engine, pages[:2], f"warm {split}")
            hardware.reset_peak_memory(choice)
            started = time.perf_counter()
            _answer(engine, pages, f"measured {split}")
            seconds = time.perf_counter() - started
            rows.append(dataclasses.replace(row, seconds=seconds, peak_gb=hardware.peak_memory_gb(choice)))
        except IdeficsCliError as error:
            rows.append(dataclasses.replace(row, failure=str(error)))
    engine.close()
    return _Measured(_weights_gb(asked), tuple(rows))


def _weights_gb(asked: _Asked) -> float:
    """Return what the weights take; of bitsandbytes' formats, which keep more of them, what they take at the least."""
    form = asked.form
    config = native_family_of(_checkpoint(asked.settings, random_weights=asked.random_weights), "bench --table").config
    quantize = _OWN_COUNTERPARTS.get(form.quantize, form.quantize)
    return weight_bytes(config, quantize, item=4 if form.dtype is Dtype.FLOAT32 else 2) / 1e9


def _try_cap(asked: _Asked) -> None:
    """Load and answer about split pages within a part of the GPU's memory; raises ModelError where that fails."""
    engine = _engine(asked)
    _answer(engine, _pages(asked.paths, engine, split=True), "capped")
    engine.close()


def _checkpoint(settings: ModelSettings, *, random_weights: bool) -> Checkpoint:
    return full_shape_checkpoint(settings) if random_weights else open_checkpoint(settings)


def _engine(asked: _Asked) -> Engine:
    form, random_weights = asked.form, asked.random_weights
    settings = dataclasses.replace(asked.settings, ignore_eos=True, gpu_memory=asked.cap_gb)
    settings = dataclasses.replace(settings, dtype=form.dtype, quantize=form.quantize, attention=form.attention)
    checkpoint = _checkpoint(settings, random_weights=random_weights)
    family, choice = native_family_of(checkpoint, "bench --table"), choose_device(settings)
    info = engine_info(settings, checkpoint, family, choice)
    if form.is_native:
        source = random_source(family, choice) if random_weights else None
        return load_native(checkpoint, family, settings, choice, info, source=source)
    check_attention(settings, choice, is_native=False)
    if not settings.quantize.is_native:
        check_bitsandbytes(settings.quantize, settings.model, checkpoint.config.get("model_type"), choice.device)
    model = TransformersModel(checkpoint, family, settings, choice, random_weights=random_weights)
    return TransformersEngine(checkpoint, family, settings, choice, info, model=model)


def _pages(paths: Sequence[Path], engine: Engine, *, split: bool) -> list[PreparedPage]:
    with PagePool(PageSettings(split=Split.ALWAYS if split else Split.NEVER)) as pool:
        documents = [Document(path.name, str(path)) for path in paths]
        return first_pages(documents, engine.info.image_processor, pool)


def _answer(engine: Engine, pages: Sequence[PreparedPage], name: str) -> None:
    futures = [
        engine.submit(Request("What is the total?", (page,), (f"{name} {number}",)))
        for number, page in enumerate(pages)
    ]
    failures = [answer.failure for answer in (future.result() for future in futures) if answer.failure]
    if failures:
        raise ModelError(f"a question was not answered: {failures[0]}")
