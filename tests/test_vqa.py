from __future__ import annotations

import pytest

from idefics_cli.results.vqa import vqa_accuracy, vqa_normalized


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("The cat", "cat"),
        ("a  b\tc\nd", "b c d"),
        ("5", "5"),
        ("$5", "$5"),
        ("5%", "5%"),
        ("1,000", "1000"),
        ("a,b", "b"),
        ("red,green", "red green"),
        ("red, green", "red green"),
        ("red-green", "red green"),
        ("red - green", "red green"),
        ("t-shirt, red", "t shirt red"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("3.5.", "3.5"),
        ("U.S.A.", "usa"),
        ("it's: o'clock", "it's: o'clock"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("oclock", "o'clock"),
        ("well", "well"),
        ("its", "its"),
        ("{a}[b](c)", "b c"),
        ("what?!", "what"),
    ],
)
def test_texts_are_normalized_as_the_official_evaluation_does(text: str, normalized: str) -> None:
    assert vqa_normalized(text) == normalized


def test_vqa_accuracy_leaves_one_annotator_out() -> None:
    ten = ["cat"] * 2 + ["dog"] * 8
    # of the ten subsets of nine, two hold one match and eight hold two
    assert vqa_accuracy("cat", ten) == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert vqa_accuracy("Dog.", ten) == 1.0
    assert vqa_accuracy("cow", ten) == 0.0


def test_with_few_accepted_answers_one_match_is_enough() -> None:
    assert vqa_accuracy("the cat.", ["cat", "dog"]) == 1.0
    assert [vqa_accuracy(text, ["5"]) for text in ("5", "five", "$5", "5%")] == [1.0, 1.0, 0.0, 0.0]
