"""`eval`: scores an answered CSV whose questions carry accepted answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from idefics_cli.cli import options
from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.errors import InputError, OutputError
from idefics_cli.metrics import FullStop, Scores, mean, score
from idefics_cli.questions.read import accepted_answers
from idefics_cli.results.summary import NO_ANSWER

if TYPE_CHECKING:
    import pandas

_METRICS = ("anls", "exact", "relaxed", "vqa")


def evaluate(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS.csv", help="An output of run.", show_default=False)],
    by: Annotated[
        str | None, typer.Option("--by", help="A column whose values are scored apart.", show_default=False)
    ] = None,
    full_stop: Annotated[
        FullStop, typer.Option("--full-stop", help="What happens to a full stop at an answer's end.")
    ] = FullStop.STRIP,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the rows with their scores here.", rich_help_panel=options.OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=options.OUTPUT)
    ] = False,
    verbose: options.Verbose = False,
) -> None:
    """Score answers against the accepted ones of their questions; failed rows score 0.

    ANLS (threshold 0.5), exact match, relaxed accuracy (5 %) and VQA accuracy, by their published protocols.

    Example: [bold]idefics-cli eval answers.csv --by split[/bold]
    """
    with exit_codes(verbose=verbose), results_on_stdout() as stdout:
        rows = _read(answers)
        if by is not None and by not in rows.columns:
            raise InputError(f"{answers}: no column {by!r} to score by (found: {', '.join(rows.columns)})")
        scored = [
            (index, _score(row, full_stop)) for index, row in enumerate(rows.to_dict("records")) if row["answers"]
        ]
        if not scored:
            raise InputError(f"{answers}: no row has accepted answers (column 'answers')")
        if output is not None:
            _write(rows, scored, output)
        groups: dict[str, list[Scores]] = {}
        for index, scores in scored:
            groups.setdefault(str(rows.iloc[index][by]) if by else "all", []).append(scores)
        if by:
            groups["all"] = [scores for _, scores in scored]
        report = {name: {"rows": len(group), **_rounded(mean(group))} for name, group in groups.items()}
        if as_json:
            print(json.dumps({"full_stop": full_stop, "scores": report}, ensure_ascii=False), file=stdout)
        else:
            Console(file=stdout, width=None if stdout.isatty() else 100).print(_table(report, by, full_stop))


def _read(path: Path) -> pandas.DataFrame:
    import pandas  # half a second that `--help` does not wait for

    try:
        rows = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    missing = [column for column in ("answer", "answers", "status") if column not in rows.columns]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]!r}; eval takes an output of run whose questions carried 'answers'"
        )
    return rows


def _score(row: dict[Any, Any], full_stop: FullStop) -> Scores:
    accepted = accepted_answers(row["answers"])
    return score(row["answer"], accepted, full_stop) if row["status"] == "ok" and accepted else NO_ANSWER


def _rounded(scores: Scores) -> dict[str, float]:
    return {name: round(getattr(scores, name), 4) for name in _METRICS}


def _write(rows: pandas.DataFrame, scored: Sequence[tuple[int, Scores]], path: Path) -> None:
    by_index = dict(scored)
    for name in _METRICS:
        rows[name] = [
            f"{getattr(by_index[index], name):.4f}" if index in by_index else "" for index in range(len(rows))
        ]
    try:
        rows.to_csv(path, index=False)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


def _table(report: dict[str, dict[str, float]], by: str | None, full_stop: FullStop) -> Table:
    table = Table(by or "", "rows", "ANLS", "exact", "relaxed", "VQA", box=None, pad_edge=False)
    table.caption = f"full stops at the end: {'stripped' if full_stop is FullStop.STRIP else 'kept'}"
    for name, values in report.items():
        table.add_row(name, str(values["rows"]), *(f"{values[metric]:.1%}" for metric in _METRICS))
    return table
