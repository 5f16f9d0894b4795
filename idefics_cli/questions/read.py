"""Reads questions: CSV through pandas, JSONL line by line. Every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from idefics_cli.errors import FailureKind, InputError, UsageError
from idefics_cli.questions.pages import check_selection
from idefics_cli.records import Question

QUESTION_COLUMNS = ("question", "document", "page", "id", "answers")
_DELIMITERS = ",;\t|"
_SHOWN_PROBLEMS = 10


def read_file(path: Path) -> list[Question]:
    """Read a questions file; its ending says which format it is (`.jsonl`, `.ndjson`, `.json`: JSONL).

    Raises:
        InputError: it can't be read, or a line of it can't be asked.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        questions = list(read_jsonl(content.splitlines(), str(path)))
    else:
        questions = read_csv(content, str(path))
    return checked(questions, str(path))


def checked(questions: list[Question], name: str) -> list[Question]:
    """Return the questions if all can be asked.

    Raises:
        InputError: with the first lines that can't.

    """
    problems = [f"{question.place}: {question.failure}" for question in questions if question.failure]
    if problems:
        more = f"\n... and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputError("\n".join(problems[:_SHOWN_PROBLEMS]) + more)
    if not questions:
        raise InputError(f"{name}: no questions in it")
    return questions


def read_stream(stream: IO[bytes], name: str = "<stdin>") -> Iterator[Question]:
    """Read questions from a stream: JSONL as the lines come, CSV once it has ended.

    A line that can't be asked becomes a question with a `failure`; the stream goes on.
    """
    first = b""
    for line in stream:
        first += line
        if first.strip():
            break
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        lines = first.splitlines()
        yield from read_jsonl(_chain(lines, stream), name)
    elif first.strip():
        yield from read_csv(first + stream.read(), name)


def _chain(lines: Iterable[bytes], stream: IO[bytes]) -> Iterator[bytes]:
    yield from lines
    yield from stream


def read_jsonl(lines: Iterable[bytes], name: str) -> Iterator[Question]:
    """Read questions from JSON objects, one a line; blank lines are passed over."""
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            values = json.loads(text)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            yield _failed(place, f"not a line of JSON: {error}")
            continue
        if not isinstance(values, dict):
            yield _failed(place, f'a JSON object is wanted, as in {{"question": "..."}}, not {type(values).__name__}')
            continue
        yield _question(values, place, seen)


def read_csv(content: bytes, name: str) -> list[Question]:
    """Read questions from CSV: any of , ; tab | between the columns, with or without a byte-order mark.

    Raises:
        InputError: not a table, or no `question` column in it.

    """
    import pandas  # half a second that `--help` does not wait for

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    table_text = text.lstrip("\r\n")
    above = text[: len(text) - len(table_text)].count("\n")
    header = table_text.partition("\n")[0]
    if not header.strip():
        raise InputError(f"{name}: no questions in it")
    delimiter = _delimiter(header)
    try:
        places = _record_lines(table_text, delimiter, name, above)
        table = pandas.read_csv(
            io.StringIO(table_text, newline=""),
            sep=delimiter,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            index_col=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (ValueError, csv.Error) as error:  # pandas raises kinds of ValueError
        raise InputError(f"{name}: not a table that can be read: {str(error).strip()}") from error
    table.columns = [str(column).strip() for column in table.columns]
    if "question" not in table.columns:
        raise InputError(f"{name}:1: no column 'question' (found: {', '.join(map(str, table.columns))})")
    seen: dict[str, str] = {}
    questions = []
    for values, line in zip(table.to_dict("records"), places, strict=True):
        cells: dict[str, Any] = {str(key): "" if value is None else value for key, value in values.items()}
        if any(str(value).strip() for value in cells.values()):
            questions.append(_question(cells, f"{name}:{line}", seen))
    return questions


def _record_lines(text: str, delimiter: str, name: str, above: int) -> list[int]:
    """Return the line on which each record below the header starts, which pandas does not tell.

    Args:
        text: the table, from its header on.
        delimiter: between cells.
        name: of the file.
        above: blank lines before the header.

    Raises:
        InputError: a record with more cells than the header.

    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header = next(reader)
    lines: list[int] = []
    end = above + reader.line_num
    for record in reader:
        start, end = end + 1, above + reader.line_num
        if len(record) > len(header):
            raise InputError(
                f"{name}:{start}: {len(record)} cells where the header has {len(header)}; "
                "put quotes around cells that hold the delimiter"
            )
        lines.append(start)
    return lines


def _delimiter(header: str) -> str:
    """The delimiter that stands most often outside quotes in the header."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(_DELIMITERS, key=bare.count)


def _question(values: Mapping[str, Any], place: str, seen: dict[str, str]) -> Question:
    """Check the values of one line; what can't be asked becomes a question with a failure."""
    text = values.get("question")
    if not isinstance(text, str) or not text.strip():
        return _failed(place, "the question is empty" if "question" in values else "no 'question' in this line", values)
    identity = _scalar(values.get("id"))
    if identity:
        if identity in seen:
            return _failed(place, f"id {identity!r} stands in {seen[identity]} too", values)
        seen[identity] = place
    page = _scalar(values.get("page"))
    if page:
        if re.fullmatch(r"-?\d+\.0+", page):  # a spreadsheet's idea of a whole number
            page = page.partition(".")[0]
        try:
            check_selection(page)
        except UsageError as error:
            return _failed(place, f"page: {error}", values)
    document = values.get("document")
    if document is not None and not isinstance(document, str):
        return _failed(place, "document: a path is wanted", values)
    return Question(
        text.strip(),
        place,
        document=(document or "").strip() or None,
        page=page or None,
        id=identity,
        answers=accepted_answers(values.get("answers")),
        extra={key: value for key, value in values.items() if key not in QUESTION_COLUMNS or key == "answers"},
    )


def accepted_answers(value: object) -> tuple[str, ...]:
    """Return the accepted answers of a cell: a JSON list, or texts with `|` between them."""
    if value is None:
        return ()
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.startswith("["):
            try:
                return accepted_answers(json.loads(stripped))
            except ValueError:
                pass
        return tuple(part.strip() for part in stripped.split("|") if part.strip())
    if isinstance(value, list):
        return tuple(str(part).strip() for part in value if str(part).strip())
    return (str(value),)


def _scalar(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _failed(place: str, words: str, values: Mapping[str, Any] | None = None) -> Question:
    kept = values or {}
    return Question(
        str(kept.get("question") or ""),
        place,
        document=str(kept["document"]) if kept.get("document") else None,
        id=_scalar(kept.get("id")),
        extra={key: value for key, value in kept.items() if key not in QUESTION_COLUMNS or key == "answers"},
        failure=f"{FailureKind.BAD_QUESTION}: {words}",
    )
