"""The page generator: what it says of its pages is what is drawn on them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from tools.tiny_idefics2.content import NOT_FOUND, Words, is_held_out
from tools.tiny_idefics2.data import SHAPES, Encoder
from tools.tiny_idefics2.draw import Scan, characters, draw
from tools.tiny_idefics2.evaluate import answer_pages, draw_pages, figures
from tools.tiny_idefics2.layout import Text, make_page

from idefics_cli.config import Split


def test_values_of_evaluation_pages_are_never_those_of_training_pages() -> None:
    for side in (True, False):
        words = Words(Random(1), held_out=side)
        values = [
            draw() for draw in (words.person, words.date, words.amount, words.code, words.company) for _ in range(50)
        ]
        assert {is_held_out(value) for value in values} == {side}


@pytest.mark.parametrize("kind", ["invoice", "receipt", "form", "report", "letter", "table"])
def test_answers_stand_on_the_page_and_absent_ones_do_not(kind: str) -> None:
    for seed in range(8):
        page = make_page(Random(seed), size=SHAPES[0], em=14, held_out=True, kind=kind)
        text = " ".join(item.text for item in page.items if isinstance(item, Text))
        assert page.asked
        for one in page.asked:
            if one.kind == "absent":
                assert one.answer == NOT_FOUND
            else:
                assert one.answer in text
                assert one.evidence


def test_no_question_of_a_page_has_two_answers() -> None:
    for seed in range(200):
        page = make_page(Random(seed), size=SHAPES[0], em=13, held_out=False, kind="table")
        answers = {one.question.lower(): one.answer for one in page.asked}
        assert all(answers[one.question.lower()] == one.answer for one in page.asked), seed


def test_a_page_is_the_same_for_the_same_seed() -> None:
    pages = [make_page(Random(5), size=SHAPES[1], em=15, held_out=False) for _ in range(2)]
    images = [np.asarray(draw(page, Scan(angle=0.4, noise=5, jpeg=80))) for page in pages]
    assert np.array_equal(images[0], images[1])


def test_characters_lie_where_ink_is() -> None:
    page = make_page(Random(3), size=SHAPES[0], em=16, held_out=False, kind="form")
    ink = np.asarray(draw(page, Scan())) < 128
    names, centres, _ = characters(page, 0.0)
    found = 0
    for x, y in (centres * [page.width, page.height]).astype(int):
        found += bool(ink[max(0, y - 6) : y + 6, max(0, x - 5) : x + 5].any())
    assert found >= 0.97 * len(names)


def test_turns_are_what_the_processor_would_make_of_one_question() -> None:
    page = make_page(Random(4), size=SHAPES[0], em=14, held_out=False, kind="form")
    encoder = Encoder()
    batch = encoder.batch([(page, Scan(), 1.0)], Random(0), split=True, length=860)
    assert batch.images.shape == (1, 5, 490, 378)
    assert int((batch.tokens[0] == encoder.image).sum()) == 5 * 64
    assert int((batch.targets[0] == encoder.end).sum()) == len(set(batch.turns[0].tolist()) - {0, 9999})


@pytest.mark.slow
def test_the_model_reads_500_dense_pages_when_they_are_split(tmp_path: Path) -> None:
    pages = draw_pages(tmp_path, dense=500, large=150, seed=20_000)
    found = figures({split: answer_pages(pages, split) for split in Split})
    print(found)
    assert found["dense, always split"] >= 0.9
    assert found["dense, never split"] <= found["dense, always split"] - 0.3
    assert found["auto over always"] >= 0.98
    assert found["large print split by auto"] <= 0.1
    assert found["seconds a page, always split"] <= 3
