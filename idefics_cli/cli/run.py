"""`run`: questions from a file or a pipe, documents from anywhere, rows to CSV or JSONL."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from idefics_cli.cli import options
from idefics_cli.cli.asked import read_questions
from idefics_cli.cli.dry_run import report
from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.output import format_of, journal_of, opened_output
from idefics_cli.cli.progress import reporting
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import (
    Format,
    MaxFailures,
    ModelSettings,
    OutputSettings,
    PageSettings,
    RetryFailed,
    RunSettings,
)
from idefics_cli.documents import discover
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.errors import ROWS_FAILED, TooManyFailuresError, UsageError
from idefics_cli.pipeline import Progress, check_pages
from idefics_cli.pipeline import run as run_pipeline
from idefics_cli.questions.pages import check_selection
from idefics_cli.questions.read import accepted_answers
from idefics_cli.records import Row
from idefics_cli.rehearsal import rehearse
from idefics_cli.results.summary import Summary, summary_table
from idefics_cli.results.write import RowWriter
from idefics_cli.rows import answer_settings

if TYPE_CHECKING:
    from idefics_cli.engine.idefics2 import Idefics2Engine


def run(
    documents: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders (recursive) and globs; questions may name others.", show_default=False),
    ] = None,
    questions: Annotated[
        str, typer.Option("--questions", "-q", help="CSV or JSONL of questions; - is stdin.", show_default=False)
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Where rows go; - is stdout.", rich_help_panel=options.OUTPUT)
    ] = "-",
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="csv or jsonl.",
            show_default="by the output's ending, else csv",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the output's rows, ask what is missing.", rich_help_panel=options.OUTPUT),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the output once the run is done.", rich_help_panel=options.OUTPUT),
    ] = False,
    retry_failed: Annotated[
        RetryFailed | None,
        typer.Option(
            "--retry-failed",
            help="With --resume: ask failed rows again, those that may pass (the default) or all.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", help="Wait for a run that holds the output.", rich_help_panel=options.OUTPUT
        ),
    ] = 0.0,
    excel_safe: Annotated[
        bool,
        typer.Option("--excel-safe", help="CSV: no cell that a spreadsheet would run.", rich_help_panel=options.OUTPUT),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done; ask and write nothing.", rich_help_panel=options.MESSAGES
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask at most N rows.", rich_help_panel=options.OUTPUT)
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(
            "--max-failures", metavar="N|P%", help="Stop a run with more failed rows.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Questions may name documents below this folder alone.",
            show_default=False,
            rich_help_panel=options.PAGES,
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls", help="Questions may name http(s) addresses on public hosts.", rich_help_panel=options.PAGES
        ),
    ] = False,
    model: options.Model = options.MODEL_DEFAULTS.model,
    revision: options.Revision = None,
    device: options.DeviceOption = options.MODEL_DEFAULTS.device,
    dtype: options.DtypeOption = options.MODEL_DEFAULTS.dtype,
    batch_size: options.BatchSizeOption = options.MODEL_DEFAULTS.batch_size,
    max_new_tokens: options.MaxNewTokens = options.MODEL_DEFAULTS.max_new_tokens,
    prompt: options.Prompt = options.MODEL_DEFAULTS.prompt,
    quantize: options.QuantizeOption = options.MODEL_DEFAULTS.quantize,
    gpu_memory: options.GpuMemory = options.MODEL_DEFAULTS.gpu_memory,
    kernels: options.KernelsOption = options.MODEL_DEFAULTS.kernels,
    pages: options.Pages = None,
    across: options.AcrossOption = options.ACROSS_DEFAULT,
    split: options.SplitOption = options.PAGE_DEFAULTS.split,
    rasterizer: options.RasterizerOption = options.PAGE_DEFAULTS.rasterizer,
    password: options.Password = None,
    page_timeout: options.PageTimeout = options.PAGE_DEFAULTS.page_timeout,
    max_pixels: options.MaxPixels = options.PAGE_DEFAULTS.max_pixels,
    max_pages: options.MaxPages = options.PAGE_DEFAULTS.max_pages,
    workers: options.Workers = options.PAGE_DEFAULTS.workers,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing but errors.", rich_help_panel=options.MESSAGES)
    ] = False,
    verbose: options.Verbose = False,
) -> None:
    """Ask many documents many questions; every question becomes a row, answered or failed.

    Examples:
    [bold]idefics-cli run inbox/ -q questions.csv -o answers.csv[/bold]

    [bold]producer | idefics-cli run -q - -o - --format jsonl | consumer[/bold]

    """
    with exit_codes(verbose=verbose), results_on_stdout() as stdout:
        if not questions:
            raise UsageError("questions are missing: -q FILE, or -q - to read them from stdin")
        if pages is not None:
            check_selection(pages)
        path = None if output == "-" else Path(output)
        settings = RunSettings(
            pages=PageSettings(
                rasterizer=rasterizer,
                split=split,
                password=password,
                page_timeout=page_timeout,
                max_pixels=max_pixels,
                max_pages=max_pages,
                workers=workers,
            ),
            model=ModelSettings(
                model, revision, device, dtype, batch_size, max_new_tokens, prompt, quantize, kernels, gpu_memory
            ),
            output=OutputSettings(
                path, form or format_of(path), resume, overwrite, retry_failed, excel_safe=excel_safe, wait=wait
            ),
            page_selection=pages,
            across=across,
            limit=limit,
            max_failures=MaxFailures.parse(max_failures) if max_failures is not None else None,
            root=root,
            allow_urls=allow_urls,
            quiet=quiet,
            verbose=verbose,
        )
        if dry_run:
            if rehearse_questions(documents or [], questions, settings, stdout):
                raise typer.Exit(ROWS_FAILED)
            return
        summary = answer_questions(documents or [], questions, settings, stdout)
        if summary.failed:
            raise typer.Exit(ROWS_FAILED)


def answer_questions(names: Sequence[str], questions: str, settings: RunSettings, stdout: IO[str]) -> Summary:
    """Answer a file or pipe of questions, write the rows, and say on stderr what came of it.

    Raises:
        IdeficsCliError: nothing could be asked, or the output could not be written.

    """
    asked = read_questions(questions, discover.find(names), settings)

    @functools.cache
    def engine() -> Idefics2Engine:
        from idefics_cli.engine.idefics2 import Idefics2Engine  # brings torch along: not before it is needed

        return Idefics2Engine(settings.model)

    with (
        PagePool(settings.pages) as pool,
        opened_output(settings.output, asked.columns, stdout, lambda: answer_settings(engine(), settings)) as (
            writer,
            journal,
        ),
    ):
        if asked.total is not None:
            check_pages(asked.jobs, pool)
        if writer.renamed and not settings.quiet:
            renamed = ", ".join(f"{name} -> {column}" for name, column in writer.renamed.items())
            print(f"note: columns renamed in the output: {renamed}", file=sys.stderr)
        if settings.verbose:
            print(f"model {engine().identity}; {pool.workers} page processes", file=sys.stderr)
        progress, started = Progress(), time.monotonic()
        rows = run_pipeline(
            asked.jobs, engine(), pool, settings, done=journal.keys, progress=progress, ready=asked.ready
        )
        with reporting(asked.total, quiet=settings.quiet) as reporter:
            summary = _written(rows, writer, settings, lambda: reporter.show(progress))
    if not settings.quiet:
        table = summary_table(
            summary,
            skipped=progress.skipped,
            pages=progress.pages,
            split_pages=progress.split_pages,
            seconds=time.monotonic() - started,
        )
        Console(stderr=True).print(table)
    return summary


def rehearse_questions(names: Sequence[str], questions: str, settings: RunSettings, stdout: IO[str]) -> int:
    """Say what a run would do, without weights; returns how many rows would fail for their input.

    Raises:
        IdeficsCliError: nothing could be asked.

    """
    asked = read_questions(questions, discover.find(names), settings)
    from idefics_cli.engine.idefics2 import Idefics2Engine  # brings torch along: not before it is needed

    with PagePool(settings.pages) as pool:
        if asked.total is not None:
            check_pages(asked.jobs, pool)
        journal = journal_of(settings.output, asked.columns)
        rehearsal = rehearse(asked.jobs, Idefics2Engine(settings.model), pool, settings, done=journal.keys)
    console = Console(file=stdout, width=None if stdout.isatty() else 120)
    report(rehearsal, journal.seconds_a_row(settings.output.format), console)
    return rehearsal.failed


def _written(rows: Iterable[Row], writer: RowWriter, settings: RunSettings, report: Callable[[], None]) -> Summary:
    """Write rows as they come, and sum them up.

    Raises:
        OutputError: they can't be written.
        TooManyFailuresError: more failed than the settings allow; what is done is written.

    """
    summary = Summary()
    try:
        for row in rows:
            writer.write(row)
            summary.add(row, accepted_answers(row.extra.get("answers")))
            report()
            if settings.max_failures and settings.max_failures.are_exceeded(summary.failed, summary.rows):
                raise TooManyFailuresError(
                    f"stopped: {summary.failed} of {summary.rows} rows failed, more than --max-failures allows; "
                    f"the last: {row.error}"
                )
    finally:  # a signal too: what is computed is on the disk
        writer.sync()
    return summary
