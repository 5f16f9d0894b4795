"""What a run reads and writes, and everything that it is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from idefics_cli.config.endpoint import EndpointSettings
from idefics_cli.config.model import ModelSettings
from idefics_cli.config.option import Option, Panel, check_above_zero
from idefics_cli.config.pages import PageSettings
from idefics_cli.config.server import ClientSettings
from idefics_cli.config.shard import Shard
from idefics_cli.config.workers import WorkerSettings
from idefics_cli.errors import UsageError

_ROWS_TO_JUDGE = 20


class Format(StrEnum):
    """How rows are written."""

    CSV = "csv"
    JSONL = "jsonl"
    OPENAI_BATCH = "openai-batch"


class RetryFailed(StrEnum):
    """Which failed rows of an output are asked again."""

    TRANSIENT = "transient"
    ALL = "all"


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
    shard: Annotated[
        Shard | None,
        Option(
            "Ask part I of N only, by the documents' content; auto takes a SLURM array's task, auto/N a Kubernetes "
            "job's index. Each part has an output of its own: merge joins them.",
            Panel.LIMITS,
            metavar="I/N|auto|auto/N",
            default="all",
            parse=Shard.parse,
        ),
    ] = None
    root: Annotated[
        Path | None, Option("Questions may name documents below this folder only.", Panel.LIMITS, metavar="FOLDER")
    ] = None
    allow_urls: Annotated[bool, Option("Questions may name http(s) addresses on public hosts.", Panel.LIMITS)] = False
    allow_empty: Annotated[
        bool,
        Option(
            "Write an empty output, not an error, if a folder or glob has no document, or questions no line; CSV still "
            "needs its header.",
            Panel.COMMON,
        ),
    ] = False

    def __post_init__(self) -> None:
        check_above_zero("--limit", self.limit)
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

    pages: PageSettings = field(default_factory=PageSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    questions: QuestionSettings = QuestionSettings()
    output: OutputSettings = OutputSettings()
    messages: MessageSettings = MessageSettings()
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    server: ClientSettings = field(default_factory=ClientSettings)
    max_failures: MaxFailures | None = None
    """Failed rows after which the run stops."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)

    def __post_init__(self) -> None:
        if self.endpoint.url is None:
            return
        for flag, given in (
            ("--gpus", self.workers.gpus),
            ("--ray", self.workers.ray),
            ("--keep", self.server.keep),
        ):
            if given is not None:
                raise UsageError(f"{flag} and --endpoint exclude each other: a model runs here, or a server answers")
        if self.server.no_server:
            raise UsageError("--no-server loads the model here, --endpoint asks a server: leave one of them out")
