"""Which of the user's columns are ours: by name without regard to case, or as `--column` says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from idefics_cli.errors import UsageError

QUESTION_COLUMNS = ("question", "document", "page", "id", "answers", "password")
LIST_COLUMNS = ("documents", "messages")
"""Columns of JSONL alone."""
_OURS = QUESTION_COLUMNS + LIST_COLUMNS
_OTHER_NAMES = {
    "question": "questions query queries q prompt text",
    "document": "doc docs file files filename file_name filepath file_path path image images pdf url",
    "page": "pages page_no page_number pagenumber",
    "id": "ids question_id questionid qid uid uuid",
    "answers": "answer_list gold label labels expected ground_truth reference target",
    "password": "passwd pwd pass",
}
_LIKELY = {other: ours for ours, others in _OTHER_NAMES.items() for other in others.split()}
_CLOSE = 0.8
_REMEMBERED_NAMES = 10_000


def _folded(name: str) -> str:
    return name.strip().casefold()


class ColumnNames:
    """The columns of a questions file, told apart."""

    def __init__(self, given: Sequence[str] = ()) -> None:
        """Take `--column` options, each OURS=YOURS.

        Raises:
            UsageError: one names no column of ours, or one of ours twice.

        """
        self.given: dict[str, str] = {}
        for option in given:
            ours, _, theirs = option.partition("=")
            ours = _folded(ours)
            if ours not in _OURS:
                raise UsageError(f"--column {option}: {ours!r} is none of {', '.join(_OURS)}")
            if ours in self.given or not theirs.strip():
                raise UsageError(f"--column {option}: give each of our columns one column of yours")
            self.given[ours] = theirs.strip()
        self._ours = {ours: ours for ours in _OURS if ours not in self.given}
        self._ours |= {_folded(theirs): ours for ours, theirs in self.given.items()}
        self._known: dict[str, str | None] = {}

    def ours(self, name: str) -> str | None:
        """Return the column of ours that `name` is, None for the user's own."""
        if name not in self._known:
            if len(self._known) >= _REMEMBERED_NAMES:
                self._known.clear()
            self._known[name] = self._ours.get(_folded(name))
        return self._known[name]

    def split(self, values: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        """Part a line's values into ours, by our names, and the user's own.

        Raises:
            ValueError: two columns are the same one of ours.

        """
        ours: dict[str, object] = {}
        own: dict[str, object] = {}
        for name, value in values.items():
            known = self.ours(name)
            if known is None:
                own[name] = value
            elif known in ours:
                raise ValueError(f"two columns are {known!r}")
            else:
                ours[known] = value
        return ours, own

    def missing(self, names: Iterable[str]) -> str | None:
        """Say which column that `--column` names is not there, None when all are."""
        there = {_folded(name) for name in names}
        for ours, theirs in self.given.items():
            if _folded(theirs) not in there:
                return f"--column {ours}={theirs}: no column {theirs!r}"
        return None

    def near_misses(self, names: Iterable[str]) -> dict[str, str]:
        """Return columns of the user's that look like one of ours that is not there, with that one."""
        listed = list(names)
        there = {self.ours(name) for name in listed} | self.given.keys()
        absent = [ours for ours in QUESTION_COLUMNS if ours not in there]
        misses = {}
        for name in listed:
            likely = _LIKELY.get(_folded(name)) if self.ours(name) is None else None
            if self.ours(name) is None and likely is None:
                likely = next(iter(difflib.get_close_matches(_folded(name), absent, 1, _CLOSE)), None)
            if likely in absent:
                misses[name] = likely
        return misses

    def hint(self, names: Iterable[str]) -> str:
        """Return what helps where no column is `question`."""
        near = (name for name, ours in self.near_misses(names).items() if ours == "question")
        name = next(near, None)
        return f"did you mean --column question={name}?" if name else "--column question=NAME takes another"

    def notes(self, names: Iterable[str]) -> list[str]:
        """Return what to tell of columns whose name is almost one of ours."""
        return [
            f"column {name!r} passes through; did you mean {ours}? --column {ours}={name}"
            for name, ours in self.near_misses(names).items()
        ]
