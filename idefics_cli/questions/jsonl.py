"""Reads JSON objects, one a line. Whatever a line holds is a record, with its values or with a problem."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from idefics_cli.questions.lines import BOM, Lines, Record

_DEEPEST = 100
_ONE_A_LINE = "one object a line is wanted (jq -c '.[]' turns an array into that)"


class JsonLines:
    """JSON objects, one a line."""

    def __init__(self, lines: Lines, *, is_batch: bool = False) -> None:
        self.is_batch = is_batch
        """See `Records`."""
        self._lines = lines

    def __iter__(self) -> Iterator[Record]:
        lines = self._lines
        start = lines.end
        for text in lines:
            if lines.problem:
                yield Record(lines.number, start, {}, lines.problem)
                lines.problem = ""
            elif not text.isspace():
                yield Record(lines.number, start, *self.parse(text))
            start = lines.end

    def parse(self, text: str) -> tuple[dict[str, object], str]:
        """Read a line."""
        try:
            return _object(text.removeprefix(BOM).rstrip())
        except json.JSONDecodeError as error:
            words = f"not a line of JSON (column {error.colno}: {error.msg})"
            return {}, f"{words}; {_ONE_A_LINE}" if text.startswith("[") else words
        except RecursionError:
            return {}, f"nested deeper than {_DEEPEST} levels"
        except Exception as error:
            return {}, f"not a line of JSON ({error})"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's limit on digits
        raise ValueError(f"a number of {len(text):,} digits") from None


def _fraction(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is larger than any number that can be kept")
    return value


def _no_constant(text: str) -> object:
    raise ValueError(f"JSON has no {text}; null stands for nothing")


_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_float=_fraction, parse_constant=_no_constant)


def _object(text: str) -> tuple[dict[str, object], str]:
    values = _DECODER.decode(text)
    if isinstance(values, list):
        return {}, f"a JSON array; {_ONE_A_LINE}"
    if not isinstance(values, dict):
        return {}, f'a JSON object is wanted, as in {{"question": "..."}}, not {text[:40]}'
    if text.count("[") + text.count("{") > _DEEPEST and _depth(values) > _DEEPEST:
        return {}, f"nested deeper than {_DEEPEST} levels"
    if "\\ud" in text or "\\uD" in text:
        encoded = json.dumps(values, ensure_ascii=False).encode(errors="replace")
        if json.loads(encoded) != values:
            return json.loads(encoded), "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return values, ""


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
