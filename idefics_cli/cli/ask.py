"""`ask`: one document, one question or several, answers on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import ModelSettings, PageSettings, RunSettings
from idefics_cli.documents import discover
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.errors import ROWS_FAILED, UsageError
from idefics_cli.pipeline import run
from idefics_cli.questions.pages import check_selection
from idefics_cli.records import Job, Question, Row
from idefics_cli.results.write import cells


def ask(
    document: Annotated[str, typer.Argument(help="A PDF or an image.", show_default=False)],
    question: Annotated[list[str], typer.Argument(help="One question or several.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole row as JSON.", rich_help_panel=options.OUTPUT)
    ] = False,
    model: options.Model = options.MODEL_DEFAULTS.model,
    revision: options.Revision = None,
    device: options.DeviceOption = options.MODEL_DEFAULTS.device,
    dtype: options.DtypeOption = options.MODEL_DEFAULTS.dtype,
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
    workers: options.Workers = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Ask one document, and print each answer on a line of its own.

    Example: [bold]idefics-cli ask invoice.pdf "What is the total?"[/bold]
    """
    with exit_codes(verbose=verbose), results_on_stdout() as stdout:
        if pages is not None:
            check_selection(pages)
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
                model,
                revision,
                device,
                dtype,
                max_new_tokens=max_new_tokens,
                prompt=prompt,
                quantize=quantize,
                kernels=kernels,
                gpu_memory=gpu_memory,
            ),
            page_selection=pages,
            across=across,
        )
        failed = False
        for row in _answers(document, question, settings):
            failed |= row.status == "failed"
            _print(row, as_json, stdout, quiet)
        if failed:
            raise typer.Exit(ROWS_FAILED)


def _answers(name: str, questions: Sequence[str], settings: RunSettings) -> list[Row]:
    documents = [discover.from_data_uri(name)] if name.startswith("data:") else discover.find([name])
    if len(documents) != 1:
        raise UsageError(f"{name}: {len(documents)} documents; ask takes one, `idefics-cli run` takes many")
    jobs = [Job(Question(text, f"question {number}"), documents[0]) for number, text in enumerate(questions, 1)]
    from idefics_cli.engine.idefics2 import Idefics2Engine  # brings torch along: not before it is needed

    with PagePool(settings.pages) as pool:
        return list(run(jobs, Idefics2Engine(settings.model), pool, settings))


def _print(row: Row, as_json: bool, stdout: IO[str], quiet: bool) -> None:
    if as_json:
        print(json.dumps(cells(row), ensure_ascii=False), file=stdout)
    elif row.status == "failed":
        print(f"error: {row.document}: {row.error}", file=sys.stderr)
    else:
        print(" ".join(row.answer.split("\n")), file=stdout)
    if row.warning and not quiet and not as_json:
        print(f"warning: {row.warning}", file=sys.stderr)
