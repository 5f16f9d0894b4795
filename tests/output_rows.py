"""Rows to write to outputs, and outputs to begin with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idefics_cli.config import Format, OutputSettings
from idefics_cli.records import COLUMNS, Row
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.results.output import open_output

VALUES = {"--prompt": "{question}", "--split": "auto 11"}
"""The settings that the rows are answered with."""


def key(number: int) -> str:
    return f"{number:032x}"


def row(**changes: object) -> Row:
    values: dict[str, object] = {"extra": {}, "key": key(0), "status": "ok", "settings": settings_fingerprint(VALUES)}
    for name in COLUMNS:
        values.setdefault(name, None if name.endswith("_ms") else "")
    values |= changes
    values.setdefault("response", response(values))
    return Row(**values)  # type: ignore[arg-type]


def response(values: dict[str, object]) -> dict[str, object]:
    """The response of a row in the OpenAI form, as far as outputs read it."""
    ids: dict[str, object] = {"id": "batch_req_1", "request_id": "req_1"}
    if values["status"] != "ok":
        return ids | {"status_code": 500, "body": {"error": {"message": values["error"]}}}
    message = {"role": "assistant", "content": values["answer"]}
    usage = {"prompt_tokens": values["prompt_tokens"], "completion_tokens": values["new_tokens"]}
    return ids | {"status_code": 200, "body": {"choices": [{"index": 0, "message": message}], "usage": usage}}


def failed(number: int, error: str = "encrypted: needs a password") -> Row:
    return row(key=key(number), status="failed", error=error)


def write_output(path: Path, rows: Sequence[Row], columns: Sequence[str] = (), **settings: Any) -> list[str]:
    """Write rows as a run does that went through all its questions; returns the notes."""
    given = OutputSettings(path, **({"format": Format.CSV} | settings))
    with open_output(given, columns, io.StringIO(), VALUES) as output:
        for one in rows:
            if not output.answered.take(one.key):
                output.write(one)
        output.complete()
    return output.notes


def read_all(path: Path) -> list[dict[str, Any]]:
    """Read an output by csv and json, without the code under test."""
    data = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in data.split("\n")[:-1]]
    return list(csv.DictReader(io.StringIO(data, newline="")))
