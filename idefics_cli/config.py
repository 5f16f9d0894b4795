"""Settings of a run: frozen records, checked when they are made, and the only place where an option is described.

The command line makes its options from these fields: a field annotated with an `Option` is one.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

from idefics_cli.errors import UsageError

DEFAULT_MODEL = "HuggingFaceM4/idefics2-8b"
TINY_MODEL = "tiny"
MOST_CHOICES = 200
"""Of --choices: each takes a few decoding steps of every question."""
_ROWS_TO_JUDGE = 20


class Panel(StrEnum):
    """Where `--help` shows an option; the common ones come first."""

    COMMON = "Options"
    MODEL = "Model"
    GENERATION = "Generation"
    PAGES = "Pages"
    OUTPUT = "Output"
    LIMITS = "Limits"
    MESSAGES = "Messages"


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is given on the command line."""

    help: str
    panel: Panel
    names: tuple[str, ...] = ()
    """`--model`, `-m`; without any, the field's name is the option's."""
    metavar: str | None = None
    default: str | None = None
    """What `--help` shows as the default, where the value itself says too little."""
    variable: str | None = None
    """The environment variable that it is taken from when it is not given."""
    parse: Callable[[str], object] | None = None


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

    TRANSIENT = "transient"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs: `auto`, `cpu`, `cuda` (the first GPU), `cuda:N`, or `mps`, the GPU of a Mac."""

    AUTO: ClassVar[Device]
    CPU: ClassVar[Device]
    CUDA: ClassVar[Device]
    MPS: ClassVar[Device]

    kind: str
    """auto, cpu, cuda or mps."""
    index: int | None = None
    """Of the GPU, where one is named."""

    @classmethod
    def parse(cls, value: object) -> Device:
        """Read `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

        Raises:
            UsageError: it is none of them.

        """
        match = re.fullmatch(r"(auto|cpu|mps|cuda)|cuda:([0-9]{1,3})", str(value))
        if match is None:
            raise UsageError(f"--device takes auto, cpu, cuda, cuda:N (N from 0) or mps: not {str(value)!r}")
        return cls(match[1]) if match[1] else cls("cuda", int(match[2]))

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


Device.AUTO, Device.CPU, Device.CUDA, Device.MPS = map(Device, ("auto", "cpu", "cuda", "mps"))


class Dtype(StrEnum):
    """Number format of the weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantize(StrEnum):
    """How the weights of matrix products are stored."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


class Attention(StrEnum):
    """What computes attention where transformers runs the model."""

    AUTO = "auto"
    SDPA = "sdpa"
    FLASH_ATTENTION_2 = "flash_attention_2"
    EAGER = "eager"


class AdapterBase(StrEnum):
    """Which checkpoints an adapter is merged into."""

    SAME = "same"
    ANY = "any"


class Kernels(StrEnum):
    """Whether kernels compiled for the GPU take the place of torch's own operations."""

    AUTO = "auto"
    OFF = "off"


def positive_or_auto(value: str) -> int | None:
    """Return the number, None for `auto`.

    Raises:
        UsageError: it is neither.

    """
    text = str(value)
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 18 or int(text) == 0:
        raise UsageError(f"{text!r} is neither auto nor a number above 0")
    return int(text)


def parse_choices(value: str) -> tuple[str, ...]:
    """Read `A,B,C`; a choice that holds a comma stands in double quotes, as in CSV.

    Raises:
        UsageError: it does not read as choices.

    """
    try:
        (row,) = csv.reader([value], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UsageError(f"--choices takes answers on one line, as in A,B,C: {error}") from error
    return tuple(choice.strip() for choice in row)


def _check_above_zero(flag: str, value: float | None, what: str = "a number") -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{flag} takes {what} above 0")


@dataclass(frozen=True, slots=True)
class PageSettings:
    """How documents are opened and their pages turned into crops."""

    selection: Annotated[
        str | None, Option("Pages from 1, as in 1-3,7,-1 (-1 is the last).", Panel.PAGES, ("--pages",), default="all")
    ] = None
    across: Annotated[
        Across,
        Option(
            "Several pages: a row for each page (each), the answer of the most certain page (best), or all pages in "
            "one prompt (together).",
            Panel.PAGES,
        ),
    ] = Across.BEST
    split: Annotated[Split, Option("Cut pages with small text into sub-images.", Panel.PAGES)] = Split.AUTO
    split_em: float = 11.0
    """Text smaller than this calls for splitting: em in pixels of one unsplit image; see samples/split-threshold.md."""
    rasterizer: Annotated[Rasterizer, Option("What renders PDF pages.", Panel.PAGES)] = Rasterizer.PDFIUM
    password: Annotated[
        str | None,
        Option(
            "For encrypted PDFs; better in the variable, where other users can't see it.",
            Panel.PAGES,
            variable="IDEFICS_CLI_PASSWORD",
        ),
    ] = None
    page_timeout: Annotated[
        float, Option("Seconds a page may take to render before its process is ended.", Panel.LIMITS, metavar="SECONDS")
    ] = 60.0
    max_pixels: Annotated[int, Option("Refuse images with more pixels.", Panel.LIMITS, metavar="N")] = 250_000_000
    max_pages: Annotated[
        int | None, Option("Refuse documents with more pages.", Panel.LIMITS, metavar="N", default="no limit")
    ] = None
    workers: Annotated[
        int | None,
        Option("Page processes.", Panel.LIMITS, metavar="auto|N", default="auto: one a core", parse=positive_or_auto),
    ] = None

    def __post_init__(self) -> None:
        _check_above_zero("--page-timeout", self.page_timeout, "a number of seconds")
        _check_above_zero("--max-pixels", self.max_pixels)
        _check_above_zero("--max-pages", self.max_pages)
        _check_above_zero("--workers", self.workers)

    @property
    def worker_count(self) -> int:
        """Page processes to start: one for each core, at most 16, unless the user says otherwise."""
        return self.workers or min(16, available_cores())


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How answers are generated; None leaves a setting to the checkpoint."""

    max_new_tokens: Annotated[
        int | None,
        Option(
            "Longest answer, in tokens.",
            Panel.GENERATION,
            metavar="auto|N",
            default="auto: 64, chatty checkpoints 512",
            parse=positive_or_auto,
        ),
    ] = None
    min_new_tokens: Annotated[
        int | None, Option("Shortest answer, in tokens.", Panel.GENERATION, metavar="N", default="the checkpoint's")
    ] = None
    temperature: Annotated[
        float | None,
        Option(
            "Sample answers from probabilities at this temperature; 0 takes the most probable token.",
            Panel.GENERATION,
            metavar="T",
            default="0",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "With --temperature: sample from the fewest tokens that have this probability together.",
            Panel.GENERATION,
            metavar="P",
            default="1",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option("With --temperature: another number, other answers.", Panel.GENERATION, metavar="N", default="0"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Make tokens that the prompt or the answer holds less probable (above 1).",
            Panel.GENERATION,
            metavar="X",
            default="the checkpoint's",
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        Option("Beam search, by transformers; 1 is none.", Panel.GENERATION, metavar="N", default="the checkpoint's"),
    ] = None
    stop: Annotated[
        tuple[str, ...],
        Option("End the answer before this text. May be repeated.", Panel.GENERATION, metavar="TEXT"),
    ] = ()
    choices: Annotated[
        tuple[str, ...] | None,
        Option(
            "The answer is one of these: the most probable one.",
            Panel.GENERATION,
            metavar="A,B,C",
            default="any answer",
            parse=parse_choices,
        ),
    ] = None

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are drawn at random."""
        return bool(self.temperature)

    def __post_init__(self) -> None:
        _check_above_zero("--max-new-tokens", self.max_new_tokens)
        self._check_ranges()
        if not self.is_sampling:
            for flag, given in (("--top-p", self.top_p), ("--seed", self.seed)):
                if given is not None:
                    raise UsageError(f"{flag} is for sampling: give --temperature above 0 too, or leave {flag} out")
        elif (self.num_beams or 1) > 1:
            raise UsageError("--temperature and --num-beams exclude each other: sample, or search with beams")
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise UsageError(
                f"--min-new-tokens {self.min_new_tokens} is more than --max-new-tokens {self.max_new_tokens}"
            )
        if self.choices is not None:
            self._check_choices(self.choices)

    def _check_ranges(self) -> None:
        for flag, value, least, most in (
            ("--min-new-tokens", self.min_new_tokens, 0, 10**9),
            ("--top-p", self.top_p, 1e-6, 1.0),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--repetition-penalty", self.repetition_penalty, 0.01, 100.0),
            ("--num-beams", self.num_beams, 1, 1000),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{flag} takes a number from {least} to {most}: not {value}")
        if self.temperature and not 0.01 <= self.temperature <= 100:  # below, logits outgrow float32
            raise UsageError(f"--temperature takes 0 (greedy) or a number from 0.01 to 100: not {self.temperature}")
        if not all(self.stop):
            raise UsageError("--stop takes a text of one character or more")

    def _check_choices(self, choices: tuple[str, ...]) -> None:
        if len(choices) < 2 or not all(map(str.strip, choices)):
            raise UsageError("--choices takes two answers or more, as in --choices Yes,No")
        texts = [choice.strip() for choice in choices]
        if len(choices) > MOST_CHOICES:
            raise UsageError(f"--choices takes {MOST_CHOICES} answers at most, not {len(choices):,}: each is scored")
        if twice := next((one for one, count in Counter(texts).items() if count > 1), None):
            raise UsageError(f"--choices holds {twice!r} twice")
        for flag, given in (
            ("--max-new-tokens", self.max_new_tokens),
            ("--min-new-tokens", self.min_new_tokens),
            ("--temperature", self.temperature),
            ("--repetition-penalty", self.repetition_penalty),
            ("--num-beams", self.num_beams),
            ("--stop", self.stop or None),
        ):
            if given is not None:
                raise UsageError(f"--choices takes the most probable of the answers that it names: leave {flag} out")


@dataclass(frozen=True, slots=True)
class ModelSettings(GenerationSettings):
    """Which checkpoint runs, where, and how it is asked."""

    model: Annotated[
        str,
        Option(
            "Checkpoint: a hub id, a folder with safetensors, or 'tiny' (embedded).",
            Panel.COMMON,
            ("--model", "-m"),
            variable="IDEFICS_CLI_MODEL",
        ),
    ] = DEFAULT_MODEL
    revision: Annotated[str | None, Option("Branch, tag or commit of a hub checkpoint.", Panel.MODEL)] = None
    adapter: Annotated[
        str | None,
        Option(
            "Adapter (LoRA, rsLoRA, QLoRA, DoRA): a hub id or a folder; merged into the weights as they are loaded.",
            Panel.MODEL,
            metavar="ADAPTER",
            default="none",
        ),
    ] = None
    adapter_base: Annotated[
        AdapterBase,
        Option("The checkpoint must be the one that the adapter was trained on (same), or any.", Panel.MODEL),
    ] = AdapterBase.SAME
    processor: Annotated[
        str | None,
        Option(
            "Take processor, tokenizer and chat template from another hub id or folder.",
            Panel.MODEL,
            metavar="MODEL",
            default="those of the checkpoint",
        ),
    ] = None
    device: Annotated[
        Device,
        Option(
            "Where the model runs; mps, the GPU of a Mac, is unmeasured.",
            Panel.MODEL,
            metavar="auto|cpu|cuda[:N]|mps",
            default="auto: a CUDA GPU, else the CPU",
            parse=Device.parse,
        ),
    ] = Device.AUTO
    dtype: Annotated[
        Dtype,
        Option(
            "Number format; auto: bfloat16 on a GPU, float16 on one without bfloat16 (before Ampere), float32 on the "
            "CPU.",
            Panel.MODEL,
        ),
    ] = Dtype.AUTO
    quantize: Annotated[
        Quantize,
        Option(
            "Weights in fewer bits, less exact: fp8 is faster on new GPUs; int8 and int4 run on any.",
            Panel.MODEL,
        ),
    ] = Quantize.NONE
    longest_edge: Annotated[
        int | None,
        Option(
            "Pixels of an image's longest edge: fewer take less memory and time, and show less.",
            Panel.PAGES,
            metavar="N",
            default="the checkpoint's, 980 of idefics2-8b",
        ),
    ] = None
    shortest_edge: Annotated[
        int | None,
        Option(
            "Pixels to which the shortest edge of an image is enlarged.",
            Panel.PAGES,
            metavar="N",
            default="the checkpoint's, 378 of idefics2-8b",
        ),
    ] = None
    prompt: Annotated[str, Option("Prompt template, for example '{question} Answer briefly.'", Panel.MODEL)] = (
        "{question}"
    )
    batch_size: Annotated[
        int | None,
        Option("Questions decoded together.", Panel.MODEL, metavar="auto|N", default="auto", parse=positive_or_auto),
    ] = None
    gpu_memory: Annotated[
        float | None,
        Option("GB of the GPU's memory to use at most.", Panel.MODEL, metavar="GB", default="all that is free"),
    ] = None
    attention: Annotated[
        Attention,
        Option(
            "What computes attention where transformers runs the model; the native engine has its own.", Panel.MODEL
        ),
    ] = Attention.AUTO
    kernels: Annotated[Kernels, Option("Compiled GPU kernels.", Panel.MODEL)] = Kernels.AUTO
    ignore_eos: bool = False
    """Whether every answer takes `max_new_tokens`, end or not: for measurements."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, Device):  # from Python, its name will do
            object.__setattr__(self, "device", Device.parse(self.device))
        if "{question}" not in self.prompt:
            raise UsageError("--prompt must contain {question}, for example --prompt '{question} Answer briefly.'")
        if not self.model.strip():
            raise UsageError("--model takes a hub id, a folder with safetensors, or 'tiny'")
        if self.adapter is not None and not self.adapter.strip():
            raise UsageError("--adapter takes a hub id or a folder with adapter_config.json")
        if self.processor is not None and not self.processor.strip():
            raise UsageError("--processor takes a hub id or a folder with tokenizer.json and processor_config.json")
        if self.adapter is None and self.adapter_base is not AdapterBase.SAME:
            raise UsageError("--adapter-base goes with --adapter")
        _check_above_zero("--longest-edge", self.longest_edge, "a number of pixels")
        _check_above_zero("--shortest-edge", self.shortest_edge, "a number of pixels")
        _check_above_zero("--batch-size", self.batch_size)
        _check_above_zero("--gpu-memory", self.gpu_memory, "a number of GB")
        GenerationSettings.__post_init__(self)  # no super(): a class with slots is made anew, and super() finds the old


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """How questions are read, and what they may name."""

    columns: Annotated[
        tuple[str, ...],
        Option(
            "Take a column of the questions file for one of ours: document=file. May be repeated.",
            Panel.COMMON,
            ("--column",),
            metavar="OURS=YOURS",
        ),
    ] = ()
    examples: Annotated[
        Path | None,
        Option(
            "CSV or JSONL of questions with document and answer that stand in front of every question (few-shot).",
            Panel.COMMON,
            metavar="FILE",
            default="none",
        ),
    ] = None
    limit: Annotated[int | None, Option("Ask at most N rows.", Panel.LIMITS, metavar="N", default="no limit")] = None
    root: Annotated[
        Path | None, Option("Questions may name documents below this folder only.", Panel.LIMITS, metavar="FOLDER")
    ] = None
    allow_urls: Annotated[bool, Option("Questions may name http(s) addresses on public hosts.", Panel.LIMITS)] = False
    allow_empty: Annotated[
        bool, Option("Write an empty output, not an error, if there is no document or no question.", Panel.COMMON)
    ] = False

    def __post_init__(self) -> None:
        _check_above_zero("--limit", self.limit)
        for pair in self.columns:
            if "=" not in pair:
                raise UsageError(f"--column takes OURS=YOURS, for example document=file: not {pair!r}")


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Where rows go and what happens to rows that are there."""

    path: Path | None = None
    """None is stdout."""
    format: Format = Format.CSV
    resume: Annotated[bool, Option("Keep the output's rows and ask what is missing.", Panel.COMMON)] = False
    overwrite: Annotated[bool, Option("Replace the output once the run is done.", Panel.OUTPUT)] = False
    retry_failed: Annotated[
        RetryFailed | None,
        Option(
            "With --resume: ask failed rows again, those of temporary failures (transient) or all.",
            Panel.OUTPUT,
            default="none",
        ),
    ] = None
    prune: Annotated[
        bool, Option("With --resume: drop rows whose question or document is gone or changed.", Panel.OUTPUT)
    ] = False
    excel_safe: Annotated[bool, Option("CSV: no cell that a spreadsheet would run.", Panel.OUTPUT)] = False
    wait: Annotated[float, Option("Wait for a run that holds the output.", Panel.OUTPUT, metavar="SECONDS")] = 0.0

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other: keep the rows, or replace them")
        if self.path is None and (self.resume or self.overwrite):
            raise UsageError("--resume and --overwrite need an output file: -o FILE")
        for flag, given in (("--retry-failed", self.retry_failed), ("--prune", self.prune)):
            if given and not self.resume:
                raise UsageError(f"{flag} goes with --resume")
        if not 0 <= self.wait < float("inf"):
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
        match = re.fullmatch(r"([0-9]{1,9})(%?)", text.strip())
        if match is None or (match[2] and int(match[1]) > 100):
            raise UsageError(f"--max-failures takes a number of rows or a percentage, 20 or 5%: not {text!r}")
        return cls(share=int(match[1]) / 100) if match[2] else cls(count=int(match[1]))

    def are_exceeded(self, failed: int, rows: int) -> bool:
        """Whether more rows failed than are allowed; a share is judged from twenty rows on."""
        if self.count is not None:
            return failed > self.count
        return rows >= _ROWS_TO_JUDGE and failed > (self.share or 0.0) * rows


@dataclass(frozen=True, slots=True)
class MessageSettings:
    """What is said on stderr."""

    quiet: Annotated[bool, Option("Print only errors, and what failed.", Panel.MESSAGES, ("--quiet",))] = False
    verbose: Annotated[
        bool, Option("Say what is chosen and done, and show tracebacks.", Panel.MESSAGES, ("--verbose", "-v"))
    ] = False


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything a run is told, but for its questions and documents."""

    pages: PageSettings = PageSettings()
    model: ModelSettings = ModelSettings()
    questions: QuestionSettings = QuestionSettings()
    output: OutputSettings = OutputSettings()
    messages: MessageSettings = MessageSettings()
    max_failures: MaxFailures | None = None
    """Failed rows after which the run stops."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
