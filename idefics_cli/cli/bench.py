"""`bench`: how fast this machine answers, beside plain transformers."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from idefics_cli.cli import options
from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import TINY_MODEL, ModelSettings
from idefics_cli.errors import UsageError

if TYPE_CHECKING:
    from idefics_cli.benchmark import Measurement, Report


def bench(
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="The shape of the 8B model, nothing to download.", show_default=False),
    ] = False,
    pages: Annotated[
        int, typer.Option("--pages", min=0, help="Pages to measure with.", show_default="256 on a GPU, else 8")
    ] = 0,
    stock: Annotated[bool, typer.Option(help="Measure plain transformers too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Checkpoint to measure with.", show_default="tiny", rich_help_panel=options.MODEL
        ),
    ] = None,
    revision: options.Revision = None,
    device: options.DeviceOption = options.MODEL_DEFAULTS.device,
    dtype: options.DtypeOption = options.MODEL_DEFAULTS.dtype,
    quantize: options.QuantizeOption = options.MODEL_DEFAULTS.quantize,
    batch_size: options.BatchSizeOption = options.MODEL_DEFAULTS.batch_size,
    gpu_memory: options.GpuMemory = options.MODEL_DEFAULTS.gpu_memory,
    kernels: options.KernelsOption = options.MODEL_DEFAULTS.kernels,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 16,
    workers: options.Workers = options.PAGE_DEFAULTS.workers,
    verbose: options.Verbose = False,
) -> None:
    """Measure pages and questions a second, stage by stage, beside plain transformers in the same run.

    Example: [bold]idefics-cli bench --random-weights[/bold] (on a GPU)
    """
    with exit_codes(verbose=verbose), results_on_stdout() as stdout:
        if random_weights and model is not None:
            raise UsageError("--random-weights and --model exclude each other")
        from idefics_cli.benchmark import Benchmark, Report, Settings

        settings = Settings(
            ModelSettings(
                model or TINY_MODEL,
                revision,
                device,
                dtype,
                batch_size,
                max_new_tokens,
                quantize=quantize,
                kernels=kernels,
                gpu_memory=gpu_memory,
                fixed_length=True,
            ),
            pages=pages,
            random_weights=random_weights,
            stock=stock,
            workers=workers,
        )
        with tempfile.TemporaryDirectory(prefix="idefics-cli-bench-") as folder:
            for result in Benchmark(settings, Path(folder)).run():
                if not isinstance(result, Report):
                    print(_line(result), file=sys.stderr)
                elif as_json:
                    print(json.dumps(dataclasses.asdict(result), indent=2), file=stdout)
                else:
                    Console(file=stdout, width=None if stdout.isatty() else 140).print(_table(result))


def _line(measurement: Measurement) -> str:
    """Say in a line what has been measured, while the rest goes on."""
    split = "split" if measurement.split else "whole"
    return (
        f"{measurement.way}, {split} pages, {measurement.questions_a_page} question(s) a page: "
        f"{measurement.pages_a_second:.2f} pages/s, {measurement.questions_a_second:.1f} questions/s"
    )


def _table(report: Report) -> Table:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    quantize = "" if report.quantize == "none" else f", {report.quantize}"
    table = Table(
        Column(no_wrap=True),
        *("pages", "questions a page", "pages/s", "questions/s", "vision ms/page", "prefill ms/question"),
        *("decode ms/step", "rows", "of matrix rate", "peak GB"),
        title=f"{report.model}, {report.dtype}{quantize}, {report.new_tokens} new tokens; {report.device}; {versions}",
        caption=f"matrix products {report.matrix_tflops:.3g} TFLOP/s; loaded in {report.load_s:.1f} s, "
        f"first answer after {report.first_answer_s:.2f} s more, first window (compiling) {report.warm_up_s:.1f} s",
        box=None,
    )
    for measured in report.measurements:
        table.add_row(
            measured.way,
            "split" if measured.split else "whole",
            str(measured.questions_a_page),
            f"{measured.pages_a_second:.2f}",
            f"{measured.questions_a_second:.1f}",
            *(
                "" if number is None else f"{number:{form}}"
                for number, form in (
                    (measured.vision_ms, ".1f"),
                    (measured.prefill_ms, ".2f"),
                    (measured.decode_step_ms, ".2f"),
                    (measured.rows, "d"),
                    (measured.matrix_share, ".0%"),
                    (measured.peak_gb, ".1f"),
                )
            ),
        )
    return table
