"""Rows as lines of an OpenAI batch output, and back: columns without a place in the form stand in its `idefics_cli`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from idefics_cli.records import COLUMNS
from idefics_cli.results.columns import AFTER, BEFORE

START = b'{"id": "batch_req_'
"""What a line begins with as it is written here."""
_START = re.compile(rb'\s*\{\s*"id"\s*:\s*"batch_req_')
_ELSEWHERE = ("answer", "prompt_tokens", "new_tokens")
"""Columns that the form has a place for."""
_COLUMNS_HERE = tuple(name for name in COLUMNS if name not in _ELSEWHERE)
_OWN = "columns"


def batch_values(values: Mapping[str, object], response: Mapping[str, Any], custom_id: str) -> dict[str, object]:
    """Return the line of a row.

    Args:
        values: of the row, by column.
        response: see `Row.response`.
        custom_id: by which the answer is known.

    """
    body = dict(response["body"])
    here = {name: values[name] for name in _COLUMNS_HERE}
    own = {name: value for name, value in values.items() if name not in COLUMNS}
    body["idefics_cli"] = {**body.get("idefics_cli", {}), **here, **({_OWN: own} if own else {})}
    return {
        "id": response["id"],
        "custom_id": custom_id,
        "response": {
            "status_code": response["status_code"],
            "request_id": response["request_id"],
            "body": body,
        },
        "error": body.get("error"),
    }


def looks_like_batch(start: bytes) -> bool:
    """Whether the first bytes of an output are those of this form."""
    return bool(_START.match(start)) or START.startswith(start)


def is_batch_line(values: object) -> bool:
    """Whether a line, parsed, is one of a batch output."""
    return isinstance(values, dict) and values.keys() >= {"custom_id", "response"}


def row_values_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row by column, from its line; fewer of a line that another program has written."""
    response = line["response"]
    body = response.get("body") if isinstance(response, dict) else None
    here = body.get("idefics_cli") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(here, dict) or not here.keys() >= set(_COLUMNS_HERE):
        return {}
    elsewhere: tuple[object, ...] = ("", None, None)
    if here["status"] == "ok":
        try:
            usage = body["usage"]
            elsewhere = body["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"]
        except (IndexError, KeyError, TypeError):
            return {}
    known = {**here, **dict(zip(_ELSEWHERE, elsewhere, strict=True))}
    own = here.get(_OWN)
    return {
        **{name: known[name] for name in BEFORE},
        **(own if isinstance(own, dict) else {}),
        **{name: known[name] for name in AFTER},
    }
