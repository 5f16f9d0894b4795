"""`eval`: scores an output whose questions carry accepted answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idefics_cli.cli.console import print_table, set_up_messages
from idefics_cli.cli.options import AsJson, from_settings
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import Format, MessageSettings, Option, Panel
from idefics_cli.errors import InputError, OutputError
from idefics_cli.results.metrics import METRICS, FullStop, Scores, figure_name, score

if TYPE_CHECKING:
    from io import FileIO

    import pandas
    from rich.table import Table

    from idefics_cli.results.read import StoredRow


@from_settings()
def evaluate(
    answers: Annotated[Path, typer.Argument(metavar="OUTPUT", help="An output of run.", show_default=False)],
    messages: MessageSettings,
    by: Annotated[
        str | None, Option("A column each of whose values has scores of its own.", Panel.COMMON, metavar="COLUMN")
    ] = None,
    full_stop: Annotated[FullStop, Option("What is done to a full stop at an answer's end.", Panel.COMMON)] = (
        FullStop.STRIP
    ),
    output: Annotated[
        Path | None,
        Option("Write the rows with their scores here.", Panel.COMMON, ("--output", "-o"), metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers against the accepted ones of their questions; failed rows score 0.

    ANLS (threshold 0.5), exact match, relaxed accuracy (5 %) and VQA accuracy, by their published protocols.

    Example: [bold]idefics-cli eval answers.csv --by split[/bold]
    """
    set_up_messages(messages)
    with results_on_stdout() as stdout:
        if output is None:
            means = _means(answers, by, full_stop)
        else:
            with _scores_file(answers, output) as write:
                means = _means(answers, by, full_stop, write)
        if as_json:
            report = {
                str(name): {"rows": int(row["rows"]), **{metric: round(float(row[metric]), 4) for metric in METRICS}}
                for name, row in means.iterrows()
            }
            print(json.dumps({"full_stop": full_stop, "scores": report}, ensure_ascii=False), file=stdout)
        else:
            print_table(_table(means, by, full_stop), stdout)


def _means(
    answers: Path,
    by: str | None,
    full_stop: FullStop,
    write: Callable[[StoredRow, Scores | None, bool], None] | None = None,
) -> pandas.DataFrame:
    """Score every row that has accepted answers; returns `rows` and the mean of each metric by the values of a column.

    The last line, `all`, is over all of them.

    Raises:
        InputError: the output can't be read, or has nothing to score.

    """
    import pandas

    from idefics_cli.questions.read import accepted_answers
    from idefics_cli.results.read import OutputReader

    scored = []
    for row in OutputReader(answers):
        if by is not None and by not in row.values:
            raise InputError(f"{answers}: no column {by!r} to score by (found: {', '.join(row.values)})")
        accepted = accepted_answers(row.values.get("answers"))
        scores = score(row.text("answer"), accepted, full_stop) if accepted and not row.is_failed else None
        if accepted:
            metrics = [getattr(scores, name) if scores else 0.0 for name in METRICS]
            scored.append([row.text(by) if by is not None else "all", 1, *metrics])
        if write is not None:
            write(row, scores, bool(accepted))
    if not scored:
        raise InputError(f"{answers}: no row has accepted answers; they come from a column 'answers' of the questions")
    frame = pandas.DataFrame(scored, columns=["group", "rows", *METRICS])
    sums = frame.groupby("group", sort=False).sum()
    if by is not None:
        sums = pandas.concat([sums, frame.drop(columns="group").sum().to_frame("all").T])
    sums[list(METRICS)] = sums[list(METRICS)].div(sums["rows"], axis=0)
    return sums


@contextmanager
def _scores_file(answers: Path, output: Path) -> Iterator[Callable[[StoredRow, Scores | None, bool], None]]:
    """Open a file for rows with scores: a new one, or one that `eval` wrote earlier, replaced once all is done.

    Raises:
        OutputError: something else is there, or it can't be written.

    """
    from idefics_cli.results.check import check_inputs, format_of
    from idefics_cli.results.lock import locked
    from idefics_cli.results.replace import open_unbuffered, output_errors, replacing

    form, path = format_of(output), Path(os.path.realpath(output))
    check_inputs(path, [answers])
    if not path.exists():
        with locked(path), open_unbuffered(path, "xb") as stream, output_errors(path):
            yield _writer(stream, form)
    elif path.is_file():
        _check_is_ours(path, output)
        with locked(path), replacing(path) as stream, output_errors(path):
            yield _writer(stream, form)
    else:
        with open_unbuffered(path) as stream, output_errors(path):
            yield _writer(stream, form)


def _check_is_ours(path: Path, output: Path) -> None:
    with path.open("rb") as stream:
        first = stream.readline(1 << 16).decode("utf-8", "replace").strip()
    is_csv = first.endswith("," + ",".join(METRICS)) and first.startswith("document,")
    is_jsonl = first.startswith('{"document"') and all(f'"{name}": ' in first for name in METRICS)
    if first and not is_csv and not is_jsonl:
        raise OutputError(f"{output}: exists and holds no scores of eval; name another output")


def _writer(stream: FileIO, form: Format) -> Callable[[StoredRow, Scores | None, bool], None]:
    from idefics_cli.results.lines import cell_text, csv_line, json_line

    columns: list[str] = []

    def put(line: str) -> None:
        data = memoryview(line.encode("utf-8", "backslashreplace"))
        while data:
            data = data[stream.write(data) :]

    def write(row: StoredRow, scores: Scores | None, is_scored: bool) -> None:
        values: Mapping[str, Any] = row.values | {
            name: (round(getattr(scores, name), 4) if scores else 0.0) if is_scored else None for name in METRICS
        }
        if form is Format.JSONL:
            put(json_line(values))
            return
        if not columns:
            columns.extend(values)
            put(csv_line(columns))
        put(csv_line(cell_text(values.get(name)) for name in columns))

    return write


def _table(means: pandas.DataFrame, by: str | None, full_stop: FullStop) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    titles = ("rows", *(figure_name(name, full_stop) for name in METRICS))
    table = Table(Column(Text(by or "")), *titles, box=None, pad_edge=False)
    for name, row in means.iterrows():
        table.add_row(Text(str(name)), f"{int(row['rows']):,}", *(f"{row[metric]:.1%}" for metric in METRICS))
    return table
