from __future__ import annotations

import pytest

from idefics_cli.results.metrics import FullStop, Scores, anls, figure_name, is_relaxed_match, levenshtein, mean, score


@pytest.mark.parametrize(
    ("one", "other", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_levenshtein(one: str, other: str, distance: int) -> None:
    assert levenshtein(one, other) == levenshtein(other, one) == distance


def test_anls_keeps_exactly_one_half_and_drops_what_is_below() -> None:
    assert anls("ab", "ax") == 0.5
    assert anls("abc", "axx") == 0.0
    assert anls("  Ab  C ", "ab c") == 1.0
    assert anls("", "") == 1.0


@pytest.mark.parametrize(
    ("answer", "accepted", "match"),
    [
        ("100", "105", True),
        ("100", "106", False),
        ("5%", "0.05", True),
        ("5%", "5", False),
        ("-100", "100", False),
        ("$1284.50", "1284.5", False),
        ("1,284.50", "1284.5", False),
        ("1,284.50", "1,284.50", True),
        ("0", "0", True),
        ("0.0", "0", False),
        ("0.01", "0", False),
        ("Paris", "paris", True),
        ("Paris ", "paris", False),
        ("nan", "nan", False),
    ],
)
def test_relaxed_accuracy_is_that_of_chartqa(answer: str, accepted: str, match: bool) -> None:
    assert is_relaxed_match(answer, accepted) is match


def test_score_takes_the_best_accepted_answer() -> None:
    assert score("12.5.", ["12.5", "13"]) == Scores(1.0, 1.0, 1.0, 1.0)
    assert score("yes.", ["yes"], FullStop.KEEP).exact == 0.0
    assert score("yes.", ["yes"], FullStop.STRIP).exact == 1.0


def test_a_figure_says_what_happened_to_full_stops() -> None:
    assert [figure_name(name, FullStop.KEEP) for name in ("anls", "exact", "vqa")] == ["ANLS", "exact", "VQA"]
    assert figure_name("anls", FullStop.STRIP) == "ANLS (no full stop)"
    assert score("a.", ["b"], FullStop.KEEP).vqa == score("a.", ["b"], FullStop.STRIP).vqa
    assert figure_name("vqa", FullStop.STRIP) == "VQA"


def test_score_without_accepted_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="accepted"):
        score("x", [])
    with pytest.raises(ValueError, match="no scores"):
        mean([])


def test_mean() -> None:
    assert mean([Scores(1, 1, 1, 1), Scores(0.5, 0, 0, 0)]) == Scores(0.75, 0.5, 0.5, 0.5)
