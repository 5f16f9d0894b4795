"""Scores of an answer against the accepted answers, by the published protocols."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

ANLS_THRESHOLD = 0.5


class FullStop(StrEnum):
    """What happens to a full stop at the end of an answer before it is scored.

    Idefics2 was trained on answers that end in one, and the common harnesses strip it nowhere: name the policy with
    the score.
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
    """Numbers within 5 %, other answers exact (Methani et al., PlotQA, WACV 2020; Masry et al., ChartQA, 2022)."""
    vqa: float
    """VQA accuracy (Antol et al., VQA, ICCV 2015): a third for each annotator who agrees, at most 1, averaged over
    the subsets that leave one annotator out; with fewer than ten accepted answers, 1 for any match."""


def score(answer: str, accepted: Sequence[str], full_stop: FullStop = FullStop.STRIP) -> Scores:
    """Score one answer.

    Raises:
        ValueError: no accepted answer.

    """
    if not accepted:
        raise ValueError("an answer can't be scored without accepted answers")
    if full_stop is FullStop.STRIP:
        answer = _without_full_stop(answer)
        accepted = [_without_full_stop(one) for one in accepted]
    return Scores(
        anls=max(anls(answer, one) for one in accepted),
        exact=float(any(normalized(answer) == normalized(one) for one in accepted)),
        relaxed=float(any(is_relaxed_match(answer, one) for one in accepted)),
        vqa=vqa_accuracy(answer, accepted),
    )


def mean(scores: Sequence[Scores]) -> Scores:
    """Return the means over answers.

    Raises:
        ValueError: there are none.

    """
    if not scores:
        raise ValueError("no scores to average")
    count = len(scores)
    return Scores(
        anls=sum(one.anls for one in scores) / count,
        exact=sum(one.exact for one in scores) / count,
        relaxed=sum(one.relaxed for one in scores) / count,
        vqa=sum(one.vqa for one in scores) / count,
    )


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
    """Whether two numbers agree within the tolerance, or two texts are equal."""
    given, wanted = _number(answer), _number(accepted)
    if given is not None and wanted is not None:
        return given == wanted if wanted == 0 else abs(given - wanted) / abs(wanted) <= tolerance
    return normalized(answer) == normalized(accepted)


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """VQA accuracy; see `Scores.vqa`."""
    given = _vqa_normalized(answer)
    matches = sum(_vqa_normalized(one) == given for one in accepted)
    count = len(accepted)
    if count < 10:
        return float(matches > 0)
    left_out_match = min(1.0, (matches - 1) / 3) if matches else 0.0
    return (matches * left_out_match + (count - matches) * min(1.0, matches / 3)) / count


def _without_full_stop(text: str) -> str:
    stripped = text.strip()
    return stripped[:-1].rstrip() if stripped.endswith(".") and not stripped.endswith("..") else stripped


def _number(text: str) -> float | None:
    stripped = text.strip().rstrip(".").lstrip("$€£").strip()
    percent = stripped.endswith("%")
    stripped = stripped.rstrip("%").strip()
    if not re.fullmatch(r"[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?", stripped) or not any(map(str.isdigit, stripped)):
        return None
    value = float(stripped.replace(",", ""))
    return value / 100 if percent else value


def _vqa_normalized(text: str) -> str:
    """Lower, without articles and punctuation (but for the point and comma inside numbers)."""
    lowered = re.sub(r"(?<!\d)[.,]|[.,](?!\d)", " ", text.lower())
    cleaned = "".join(c for c in lowered if c not in string.punctuation.replace(".", "").replace(",", ""))
    return " ".join(word for word in cleaned.split() if word not in ("a", "an", "the"))
