"""Scores of an answer against the accepted answers, by the published protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

from idefics_cli.results.vqa import vqa_accuracy

ANLS_THRESHOLD = 0.5


class FullStop(StrEnum):
    """What happens to a full stop at the end of an answer before it is scored.

    Idefics2 was trained on answers that end in one, and the common harnesses strip it nowhere.
    """

    KEEP = "keep"
    STRIP = "strip"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one answer, or means over several; each from 0 to 1."""

    anls: float
    """Average normalized Levenshtein similarity, threshold 0.5 (Biten et al., Scene Text Visual Question Answering,
    ICCV 2019); as in lmms-eval and VLMEvalKit, a similarity of exactly 0.5 stays."""
    exact: float
    """Equal to an accepted answer once lowered, stripped and with spaces collapsed."""
    relaxed: float
    """Numbers within 5 %, other answers equal but for case (Methani et al., PlotQA, WACV 2020; Masry et al., ChartQA,
    2022)."""
    vqa: float
    """VQA accuracy (Antol et al., VQA, ICCV 2015), see `vqa_accuracy`."""


METRICS: tuple[str, ...] = tuple(one.name for one in fields(Scores))


def figure_name(metric: str, full_stop: FullStop) -> str:
    """Return what a figure is called: a score over stripped full stops is not that of the harnesses, and says so."""
    name = {"anls": "ANLS", "vqa": "VQA"}.get(metric, metric)
    # The official VQA normalization strips full stops anyway.
    return name if full_stop is FullStop.KEEP or metric == "vqa" else f"{name} (no full stop)"


def score(answer: str, accepted: Sequence[str], full_stop: FullStop = FullStop.STRIP) -> Scores:
    """Score one answer.

    Raises:
        ValueError: no accepted answer.

    """
    if not accepted:
        raise ValueError("an answer can't be scored without accepted answers")
    vqa = vqa_accuracy(answer, accepted)
    if full_stop is FullStop.STRIP:
        answer = _without_full_stop(answer)
        accepted = [_without_full_stop(one) for one in accepted]
    return Scores(
        anls=max(anls(answer, one) for one in accepted),
        exact=float(any(normalized(answer) == normalized(one) for one in accepted)),
        relaxed=float(any(is_relaxed_match(answer, one) for one in accepted)),
        vqa=vqa,
    )


def mean(scores: Sequence[Scores]) -> Scores:
    """Return the means over answers.

    Raises:
        ValueError: there are none.

    """
    if not scores:
        raise ValueError("no scores to average")
    return Scores(*(sum(getattr(one, name) for one in scores) / len(scores) for name in METRICS))


def normalized(text: str) -> str:
    """Lower, strip and collapse spaces."""
    return " ".join(text.lower().split())


def anls(answer: str, accepted: str) -> float:
    """Normalized Levenshtein similarity, 0 below the threshold; the distance is over the longer raw string."""
    longest = max(len(answer), len(accepted))
    if longest == 0:
        return 1.0
    similarity = 1 - levenshtein(normalized(answer), normalized(accepted)) / longest
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def levenshtein(one: str, other: str) -> int:
    """Edit distance: insertions, deletions and substitutions."""
    if len(one) < len(other):
        one, other = other, one
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def is_relaxed_match(answer: str, accepted: str, tolerance: float = 0.05) -> bool:
    """Whether an answer is correct by ChartQA's relaxed accuracy.

    As published: a number is what `float` takes, a percentage sign at its end apart (which divides by 100); with
    currency or thousands separators it is a text. Texts, and numbers beside an accepted 0, must be equal but for case.
    """
    given, wanted = _number(answer), _number(accepted)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= tolerance
    return answer.lower() == accepted.lower()


def _without_full_stop(text: str) -> str:
    stripped = text.strip()
    return stripped[:-1].rstrip() if stripped.endswith(".") and not stripped.endswith("..") else stripped


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
