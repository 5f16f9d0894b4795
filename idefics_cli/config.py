"""Settings of a run: frozen, checked once, and the only place where a default is written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from idefics_cli.errors import UsageError

DEFAULT_MODEL = "HuggingFaceM4/idefics2-8b"
TINY_MODEL = "tiny"
MODEL_VARIABLE = "IDEFICS_CLI_MODEL"
_ROWS_TO_JUDGE = 20


class Split(StrEnum):
    """When a page is cut into sub-images."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Across(StrEnum):
    """How the pages of a document answer one question."""

    EACH = "each"
    BEST = "best"
    TOGETHER = "together"


class Rasterizer(StrEnum):
    """What turns PDF pages into pixels."""

    PDFIUM = "pdfium"
    POPPLER = "poppler"


class Format(StrEnum):
    """How rows are written."""

    CSV = "csv"
    JSONL = "jsonl"


class RetryFailed(StrEnum):
    """Which failed rows of an output are asked again."""

    PASSING = "passing"
    ALL = "all"


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Number format of the weights; auto is bfloat16 on a GPU and float32 on the CPU."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantize(StrEnum):
    """How the weights of matrix products are stored."""

    NONE = "none"
    FP8 = "fp8"


class Kernels(StrEnum):
    """When kernels compiled for the GPU take the place of plain operations; auto waits for work that pays for it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ImageGeometry:
    """What a checkpoint's image processor does with sizes; from its own configuration."""

    longest_edge: int
    shortest_edge: int
    resample: int = 2
    """A Pillow resampling filter; 2 is bilinear."""


@dataclass(frozen=True, slots=True)
class PageSettings:
    """How pages are found and turned into crops."""

    rasterizer: Rasterizer = Rasterizer.PDFIUM
    split: Split = Split.AUTO
    split_em: float = 11.0
    """Text smaller than this calls for splitting: em in pixels of one unsplit image; see samples/split-threshold.md."""
    password: str | None = None
    page_timeout: float = 60.0
    """Seconds a page may take to render before its process is ended."""
    max_pixels: int = 250_000_000
    """Images with more pixels are refused before they are decoded."""
    max_pages: int = 0
    """Documents with more pages are refused; 0 for no limit."""
    workers: int = 0
    """Page processes; 0 takes one for each core, at most 16."""

    def __post_init__(self) -> None:
        if self.page_timeout <= 0:
            raise UsageError("--page-timeout takes a number of seconds above 0")
        if self.max_pixels <= 0:
            raise UsageError("--max-pixels takes a number above 0")
        if self.max_pages < 0:
            raise UsageError("--max-pages takes 0 (no limit) or a number above")
        if self.workers < 0:
            raise UsageError("--workers takes 0 (one for each core) or a number above")

    @property
    def worker_count(self) -> int:
        """Page processes to start."""
        return self.workers or min(
            16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which checkpoint runs, where, and how it is asked."""

    model: str = DEFAULT_MODEL
    revision: str | None = None
    device: Device = Device.AUTO
    dtype: Dtype = Dtype.AUTO
    batch_size: int = 0
    """Questions decoded together; 0 sizes it from free memory."""
    max_new_tokens: int = 64
    prompt: str = "{question}"
    quantize: Quantize = Quantize.NONE
    kernels: Kernels = Kernels.AUTO
    gpu_memory: float = 0.0
    """GB of the GPU's memory that may be used; 0 takes what is free."""
    fixed_length: bool = False
    """Whether every answer takes `max_new_tokens`, end or not: for measurements."""

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise UsageError("--prompt must contain {question}, for example --prompt '{question} Answer briefly.'")
        if self.batch_size < 0:
            raise UsageError("--batch-size takes auto or a number above 0")
        if self.gpu_memory < 0:
            raise UsageError("--gpu-memory takes a number of GB above 0; without it, what is free is used")
        if self.max_new_tokens < 1:
            raise UsageError("--max-new-tokens takes a number above 0")


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Where rows go and what happens to rows that are there."""

    path: Path | None = None
    """None is stdout."""
    format: Format = Format.CSV
    resume: bool = False
    overwrite: bool = False
    retry_failed: RetryFailed | None = None
    excel_safe: bool = False
    """Whether cells that a spreadsheet would run as formulas are made plain text."""
    wait: float = 0.0
    """Seconds to wait for an output that another run holds."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other: keep the rows there, or replace them")
        if self.path is None and (self.resume or self.overwrite):
            raise UsageError("--resume and --overwrite need an output file: -o FILE")
        if self.retry_failed and not self.resume:
            raise UsageError("--retry-failed goes with --resume")
        if self.wait < 0:
            raise UsageError("--wait takes a number of seconds from 0 on")
        if self.excel_safe and self.format is not Format.CSV:
            raise UsageError("--excel-safe is for CSV; no spreadsheet runs JSONL")


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many failed rows are too many: a number of them, or a share of the rows so far."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> MaxFailures:
        """Read `N` or `P%`.

        Raises:
            UsageError: it is neither.

        """
        match = re.fullmatch(r"(\d+)(%?)", text.strip())
        if match is None or (match[2] and int(match[1]) > 100):
            raise UsageError(f"--max-failures takes a number of rows or a percentage, 20 or 5%: not {text!r}")
        return cls(share=int(match[1]) / 100) if match[2] else cls(count=int(match[1]))

    def are_exceeded(self, failed: int, rows: int) -> bool:
        """Whether a run has gone wrong; a share is judged from twenty rows on."""
        if self.count is not None:
            return failed > self.count
        return rows >= _ROWS_TO_JUDGE and failed > (self.share or 0.0) * rows


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything a run is told, but for its inputs."""

    pages: PageSettings = PageSettings()
    model: ModelSettings = ModelSettings()
    output: OutputSettings = OutputSettings()
    page_selection: str | None = None
    """As in `--pages 1-3,7,-1`; None takes every page."""
    across: Across = Across.BEST
    limit: int | None = None
    """Ask at most this many questions."""
    root: Path | None = None
    """The folder below which questions may name documents; None for anywhere."""
    allow_urls: bool = False
    """Whether questions may name http(s) addresses."""
    max_failures: MaxFailures | None = None
    """Failed rows after which a run is going wrong and stops."""
    quiet: bool = False
    verbose: bool = False
