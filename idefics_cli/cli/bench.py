"""`bench`: how fast this machine answers, beside plain transformers."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from idefics_cli.cli.console import print_table, set_up_messages, summary
from idefics_cli.cli.options import AsJson, from_settings, generation_fields
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import TINY_MODEL, MessageSettings, ModelSettings, Option, Panel, positive_or_auto
from idefics_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from idefics_cli.diagnostics.bench import BenchSettings, Measurement, Report
    from idefics_cli.diagnostics.start import Start
    from idefics_cli.diagnostics.table import TableRow

_BUSY = 0.1  # spread of repeats above which a figure says little


@from_settings(
    without=("prompt", "model", *(name for name in generation_fields() if name != "max_new_tokens")),
    defaults={"max_new_tokens": 16},
)
def bench(
    model: Callable[..., ModelSettings],
    messages: MessageSettings,
    name: Annotated[
        str | None,
        Option("Checkpoint to measure with.", Panel.COMMON, ("--model", "-m"), default=TINY_MODEL),
    ] = None,
    random_weights: Annotated[
        bool, Option("Random weights in the shape of the 8B model, or of --model; nothing to download.", Panel.COMMON)
    ] = False,
    table: Annotated[
        bool, Option("Measure dtypes, quantizations and attention side by side, 20 answers each.", Panel.COMMON)
    ] = False,
    start: Annotated[bool, Option("Measure the start of a process, up to its first answer.", Panel.COMMON)] = False,
    pages: Annotated[
        int | None, Option("Pages to measure with.", Panel.COMMON, metavar="N", default="256 on a GPU, else 8")
    ] = None,
    no_reference: Annotated[bool, Option("Don't measure plain transformers.", Panel.COMMON)] = False,
    workers: Annotated[
        int | None,
        Option("Page processes.", Panel.LIMITS, metavar="auto|N", default="auto: one a core", parse=positive_or_auto),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure pages and questions per second, stage by stage, beside plain transformers in the same run.

    Example: [bold]idefics-cli bench --random-weights[/bold] (on a GPU)
    """
    set_up_messages(messages)
    if pages is not None and pages < 1:
        raise UsageError("--pages takes a number above 0")
    settings = model(model=name or TINY_MODEL, ignore_eos=not start)
    if settings.max_new_tokens == 1:
        raise UsageError("--max-new-tokens takes a number above 1: the first token is not decoded")
    others = {"--pages": pages is not None, "--no-reference": no_reference, "--workers": workers is not None}
    _check_alone("--table", others | {"--start": start}, is_given=table)
    _check_alone("--start", others | {"--random-weights": random_weights}, is_given=start)
    with results_on_stdout() as stdout:
        if start:
            _measure_start(settings, stdout, as_json=as_json)
            return
        if table:
            _measure_table(settings, stdout, random_weights=random_weights, as_json=as_json)
            return
        from idefics_cli.diagnostics.bench import BenchSettings

        measured = BenchSettings(
            settings, pages=pages, random_weights=random_weights, reference=not no_reference, workers=workers
        )
        _measure(measured, stdout, as_json=as_json)


def _measure(settings: BenchSettings, stdout: IO[str], *, as_json: bool) -> None:
    from idefics_cli.diagnostics.bench import Benchmark, Report

    with tempfile.TemporaryDirectory(prefix="idefics-cli-bench-") as folder:
        for result in Benchmark(settings, Path(folder)).run():
            if not isinstance(result, Report):
                summary(_line(result), is_failure=False)
            elif as_json:
                print(json.dumps(dataclasses.asdict(result), indent=2), file=stdout)
            else:
                print_table(_table(result), stdout)


def _measure_start(settings: ModelSettings, stdout: IO[str], *, as_json: bool) -> None:
    from rich.table import Table

    from idefics_cli.diagnostics.start import Start, measure_start

    starts: list[Start] = []
    for measured in measure_start(settings):
        starts.append(measured)
        summary(f"answer after {measured.answer_s:.2f} s, ended after {measured.exit_s:.2f} s", is_failure=False)
    if as_json:
        print(json.dumps([dataclasses.asdict(measured) for measured in starts], indent=2), file=stdout)
        return
    names = [field.name for field in dataclasses.fields(Start)]
    table = Table(*(name.replace("_", " ") for name in names), box=None, pad_edge=False)
    for measured in starts:
        values = [getattr(measured, name) for name in names]
        table.add_row(*("" if value is None else f"{value:.2f}" for value in values))
    print_table(table, stdout)


def _check_alone(flag: str, others: dict[str, bool], *, is_given: bool) -> None:
    """Refuse what a table, or the measuring of starts, would not heed; raises UsageError."""
    for other, is_other_given in others.items():
        if is_given and is_other_given:
            raise UsageError(f"{flag} and {other} exclude each other")


def _measure_table(settings: ModelSettings, stdout: IO[str], *, random_weights: bool, as_json: bool) -> None:
    from rich.table import Table

    from idefics_cli.diagnostics.table import ANSWERS, measure_table, table_forms

    forms = table_forms(settings)
    if not forms:
        raise UsageError("--table has no row of this --dtype and --quantize: leave one of them out")
    rows = []
    for row in measure_table(settings, forms, random_weights=random_weights):
        rows.append(row)
        summary(" ".join(filter(None, _cells(row))), is_failure=bool(row.failure))
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2), file=stdout)
    else:
        headings = ("run by", "dtype", "quantize", "attention", "pages")
        table = Table(*headings, f"{ANSWERS} answers", "peak GB", "fits", "failed", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*_cells(row))
        print_table(table, stdout)
    if all(row.failure for row in rows):
        raise ModelError("nothing could be measured")


def _cells(row: TableRow) -> list[str]:
    form = row.form
    return [
        "idefics-cli" if form.is_native else "transformers",
        str(form.dtype),
        str(form.quantize),
        "" if form.is_native else str(form.attention),
        "split" if row.split else "whole",
        "" if row.seconds is None else f"{row.seconds:.2f} s",
        "" if row.peak_gb is None else f"{row.peak_gb:.1f}",
        "" if row.fits_gb is None else f"{row.fits_gb} GB",
        row.failure,
    ]


def _line(measurement: Measurement) -> str:
    """Say in a line what has been measured, while the rest goes on."""
    split = "split" if measurement.split else "whole"
    busy = f" (repeats differ by {measurement.spread:.0%}: is the machine busy?)" * (measurement.spread > _BUSY)
    return (
        f"{measurement.way}, {split} pages, {measurement.questions_per_page} question(s) per page: "
        f"{measurement.pages_per_s:.2f} pages/s, {measurement.questions_per_s:.1f} questions/s{busy}"
    )


_COLUMNS = (
    ("pages/s", "pages_per_s", ".2f"),
    ("questions/s", "questions_per_s", ".1f"),
    ("spread", "spread", ".0%"),
    ("vision ms/page", "vision_ms", ".1f"),
    ("prefill ms/question", "prefill_ms", ".2f"),
    ("decode ms/step", "decode_step_ms", ".2f"),
    ("batch size", "batch_size", "d"),
    ("MFU", "mfu", ".0%"),
    ("peak GB", "peak_gb", ".1f"),
)


def _table(report: Report) -> Table:
    from rich.table import Column, Table

    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    quantize = "" if report.quantize == "none" else f", {report.quantize}"
    table = Table(
        Column(no_wrap=True),
        *("pages", "questions per page", *(title for title, _, _ in _COLUMNS)),
        title=f"{report.model}, {report.dtype}{quantize}, {report.new_tokens} new tokens; {report.device}; {versions}",
        caption=f"matrix products {report.peak_tflops:.3g} TFLOP/s; loaded in {report.load_s:.1f} s, "
        f"first answer after {report.first_answer_s:.2f} s more",
        box=None,
    )
    for measured in report.measurements:
        numbers = ((getattr(measured, name), form) for _, name, form in _COLUMNS)
        table.add_row(
            measured.way,
            "split" if measured.split else "whole",
            str(measured.questions_per_page),
            *("" if number is None else f"{number:{form}}" for number, form in numbers),
        )
    return table
