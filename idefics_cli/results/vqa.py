"""VQA accuracy, with the normalization of its official evaluation (Antol et al., VQA, ICCV 2015)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANNOTATORS = 10
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = ("a", "an", "the")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _without_one_apostrophe() -> dict[str, str]:
    """Map each contraction, written with one apostrophe too few, to its right form."""
    wrong = {
        word[:index] + word[index + 1 :]: word
        for word in _CONTRACTIONS.split()
        for index, character in enumerate(word)
        if character == "'"
    }
    return wrong | {"somebody'd": "somebodyd"}  # the official list has this one the other way round


_RIGHT_FORMS = _without_one_apostrophe()


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """Return a third for each annotator who agrees, at most 1, averaged over leaving each annotator out.

    The protocol has ten annotators; with fewer accepted answers, an answer that is one of them scores 1.
    """
    given = vqa_normalized(answer)
    matches = sum(vqa_normalized(one) == given for one in accepted)
    count = len(accepted)
    if count < _ANNOTATORS:
        return float(matches > 0)
    if_left_out = min(1.0, max(0, matches - 1) / 3)
    return (matches * if_left_out + (count - matches) * min(1.0, matches / 3)) / count


def vqa_normalized(text: str) -> str:
    """Return a text as the official evaluation compares it: punctuation, number words, articles, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        stands_apart = f"{mark} " in text or f" {mark}" in text or has_number
        cleaned = cleaned.replace(mark, "" if stands_apart else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", cleaned).lower().split())
    return " ".join(_RIGHT_FORMS.get(word, word) for word in words if word not in _ARTICLES)
