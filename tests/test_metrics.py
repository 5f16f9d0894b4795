from __future__ import annotations

import pytest

from idefics_cli.metrics import FullStop, Scores, anls, is_relaxed_match, levenshtein, mean, score, vqa_accuracy


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
        ("$1,284.50", "1284.5", True),
        ("5%", "0.05", True),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("Paris", "paris ", True),
        ("1.2.3", "1.2.4", False),
    ],
)
def test_relaxed_accuracy_allows_numbers_five_percent(answer: str, accepted: str, match: bool) -> None:
    assert is_relaxed_match(answer, accepted) is match


def test_vqa_accuracy_leaves_one_annotator_out() -> None:
    assert vqa_accuracy("cat", ["cat"]) == 1.0
    assert vqa_accuracy("the cat.", ["cat", "dog"]) == 1.0
    ten = ["cat"] * 2 + ["dog"] * 8
    # of the ten subsets of nine, two hold one match and eight hold two
    assert vqa_accuracy("cat", ten) == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert vqa_accuracy("dog", ten) == 1.0


def test_score_takes_the_best_accepted_answer_and_names_its_full_stop_policy() -> None:
    assert score("12.5.", ["12.5", "13"]) == Scores(1.0, 1.0, 1.0, 1.0)
    assert score("yes.", ["yes"], FullStop.KEEP).exact == 0.0
    assert score("yes.", ["yes"], FullStop.STRIP).exact == 1.0


def test_score_without_accepted_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="accepted"):
        score("x", [])
    with pytest.raises(ValueError, match="no scores"):
        mean([])


def test_mean() -> None:
    assert mean([Scores(1, 1, 1, 1), Scores(0.5, 0, 0, 0)]) == Scores(0.75, 0.5, 0.5, 0.5)
