"""The page generator: what it says of its pages is what is drawn on them."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from idefics_cli.config import Dtype, Quantize
from tools.tiny_idefics2 import labels, lexicon, second_set
from tools.tiny_idefics2.__main__ import MODEL
from tools.tiny_idefics2.average import main as average
from tools.tiny_idefics2.compiled import load_compiled, save_compiled
from tools.tiny_idefics2.data import SHAPES, Encoder, Level, Pages
from tools.tiny_idefics2.draw import Scan, characters, draw
from tools.tiny_idefics2.drawers import drawn_batches, shared_level
from tools.tiny_idefics2.evaluate import sample_pages
from tools.tiny_idefics2.fonts import families
from tools.tiny_idefics2.formats import compare_formats
from tools.tiny_idefics2.layout import make_page
from tools.tiny_idefics2.lexicon import NOT_FOUND
from tools.tiny_idefics2.model import position_ids
from tools.tiny_idefics2.page import Page, Text
from tools.tiny_idefics2.reading import TinyReader
from tools.tiny_idefics2.state import Plan, State
from tools.tiny_idefics2.values import Values, is_held_out


def test_values_of_evaluation_pages_are_never_those_of_training_pages() -> None:
    for side in (True, False):
        words = Values(Random(1), held_out=side)
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


def test_positions_of_patches_follow_fractional_coordinates_in_float32() -> None:
    ids = position_ids(2, 3, torch.device("cpu"))
    assert ids.tolist() == [0, 11, 23, 595, 606, 618]
    assert position_ids(35, 35, torch.device("cpu")).tolist() == list(range(35 * 35))


def test_many_words_come_from_no_list() -> None:
    known = set(lexicon.words("surnames"))
    drawn = [lexicon.any_word(Random(seed), "surnames") for seed in range(2000)]
    assert 0.55 < sum(word in known for word in drawn) / len(drawn) < 0.65


def test_values_hold_no_character_that_the_tokenizer_lacks() -> None:
    values = Values(Random(2), held_out=False)
    for name in ("person", "company", "city", "job", "item", "subject", "code", "date", "amount", "email", "phone"):
        assert not set("".join(getattr(values, name)() for _ in range(300))) - set(lexicon.CHARACTERS), name


def test_a_page_of_the_second_set_is_the_same_every_time_and_asks_three_questions() -> None:
    for number in (0, 3, 4):
        first, again = second_set.asked_page(number), second_set.asked_page(number)
        assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
        assert first.questions == again.questions
        assert len(first.questions) == 3


def test_the_shipped_model_reads_a_sample() -> None:
    reader = TinyReader(MODEL, torch.float32, "cpu")
    pages = [page for page in sample_pages() if page.questions[0][2] == "documents/notice.bmp"]
    (answers,) = reader.answer(pages, [False])
    assert [answer for _, answer, _ in pages[0].questions] == answers


KINDS = ["sheet", "list", "note"]


def pages(kind: str, count: int, *, held_out: bool) -> list[Page]:
    return [
        make_page(Random(seed), size=SHAPES[seed % 4], em=14, held_out=held_out, kind=kind) for seed in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_any_words_and_their_values_are_drawn_where_they_are_said_to_be(kind: str) -> None:
    for page in pages(kind, 60, held_out=False):
        boxes = {item.box: item.text for item in page.items if isinstance(item, Text)}
        for one in page.asked:
            if one.kind == "absent":
                continue
            assert one.answer in " ".join(boxes[box] for box in one.evidence), one
            assert all(
                x0 >= 0 and y0 >= 0 and x1 <= page.width + 1 and y1 <= page.height + 1
                for x0, y0, x1, y1 in one.evidence
            )


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_about_any_labels_has_two_answers(kind: str) -> None:
    for page in pages(kind, 100, held_out=False):
        answers: dict[str, str] = {}
        for one in page.asked:
            assert answers.setdefault(one.question.lower(), one.answer) == one.answer, (one, answers)


def test_what_is_not_found_is_on_no_label_of_the_page() -> None:
    asked = 0
    for page in pages("sheet", 150, held_out=False):
        shown = [labels.words_of(item.text) for item in page.items if isinstance(item, Text)]
        for one in (one for one in page.asked if one.kind == "absent"):
            asked += 1
            words = labels.words_of(one.question)
            assert not [text for text in shown if len(text) > 1 and text <= words], one
    assert 20 < asked < 250


def test_few_questions_are_about_what_is_absent() -> None:
    asked = [one for seed in range(150) for one in make_page(Random(seed), size=SHAPES[0], em=14, held_out=False).asked]
    assert 0.03 < sum(one.kind == "absent" for one in asked) / len(asked) < 0.12


@pytest.mark.parametrize("held_out", [True, False])
def test_values_of_any_labels_are_from_their_side_of_the_hash(held_out: bool) -> None:
    values = Values(Random(3), held_out, capitals=True)
    for kind in ("person", "code", "date", "amount", "figures", "measure", "phrase", "email"):
        assert {is_held_out(labels.draw_value(values, kind)) for _ in range(60)} == {held_out}, kind


def test_most_labels_are_from_no_list() -> None:
    values = Values(Random(5), held_out=False)
    invented = {labels.invent(values).nouns[0] for _ in range(500)}
    assert len(invented) > 480


def test_stretched_words_are_drawn_where_their_characters_are_said_to_be() -> None:
    for seed in range(6):
        page = make_page(Random(seed), size=SHAPES[0], em=18, held_out=False, kind="note")
        page.items = [item for item in page.items if isinstance(item, Text) and item.ink < 200]
        ink = np.asarray(draw(page, Scan())) < 160
        names, centres, _ = characters(page, 0.0)
        points = (centres * [page.width, page.height]).astype(int)
        found = sum(bool(ink[max(0, y - 7) : y + 8, max(0, x - 4) : x + 5].any()) for x, y in points)
        assert found >= 0.97 * len(names), seed


def test_a_run_goes_on_from_averaged_weights_and_heads(tmp_path: Path) -> None:
    state = State(Plan(out=tmp_path, start=MODEL, settle=9), torch.device("cpu"))
    assert state.settling
    before = [weight.clone() for weight in state.average]
    with torch.no_grad():
        for weight in state.reader.parameters():
            weight += 1.0
    state.set_rate()
    state.advance()
    weights = [weight.clone() for weight in state.reader.parameters()]
    assert all(torch.all((old < new) & (new < at)) for old, new, at in zip(before, state.average, weights, strict=True))
    state.save()
    assert all(torch.equal(old, new) for old, new in zip(weights, state.reader.parameters(), strict=True))
    resumed = State(Plan(out=tmp_path), torch.device("cpu"))
    assert resumed.step == 1
    assert all(torch.equal(old, new) for old, new in zip(state.average, resumed.average, strict=True))
    onward = State(Plan(out=tmp_path / "next", start=tmp_path), torch.device("cpu"))
    assert not onward.settling
    for old, new in zip(state.average, onward.reader.parameters(), strict=True):
        assert torch.allclose(old, new, atol=0.01, rtol=0.01)
    assert (tmp_path / "heads.safetensors").stat().st_size < 16_000_000


def test_the_rate_stays_full_and_falls_at_the_end(tmp_path: Path) -> None:
    state = State(Plan(out=tmp_path, rate=1.0, warm_up=2, cool=0.4, minutes=10.1), torch.device("cpu"))
    rates = []
    for state.seconds in (0.0, 100.0, 300.0, 480.0, 600.0):
        rates.append(state.set_rate())
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.01])


def test_compiled_code_is_kept_in_files_and_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = bytes(range(256)) * 100_000
    taken: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (code, None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", taken.append)
    load_compiled(None, 0)
    load_compiled(tmp_path, 0)
    save_compiled(tmp_path, 0)
    load_compiled(tmp_path, 1)
    assert not taken
    load_compiled(tmp_path, 0)
    assert taken == [code]
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 16_000_000


def test_pages_are_asked_again_and_arrive_in_one_shape() -> None:
    batches = iter(Pages(3, 1, multiprocessing.Value("i", int(Level.ALL))))
    first, again = next(batches), next(batches)
    assert torch.equal(first.images, again.images)
    assert first.tokens.shape == again.tokens.shape


def test_no_family_of_the_second_set_is_trained_on() -> None:
    names = " ".join(family.name.lower() for family in families())
    assert not [
        face for face in ("lato", "red hat", "noto", "ubuntu", "space mono", "fira", "computer modern") if face in names
    ]


def test_formats_are_asked_about_the_same_pages() -> None:
    first, same = compare_formats(own=1, second=1, seed=120_000, model=str(MODEL), formats=["float32", "float32"])
    assert (first.dtype, first.quantize) == (Dtype.FLOAT32, Quantize.NONE)
    assert 3 < first.asked <= 6
    assert 0 < first.exact <= first.asked
    assert same == first
    assert same.same == same.asked


def test_a_process_that_draws_pages_is_replaced_when_it_dies() -> None:
    others = multiprocessing.active_children()
    batches = drawn_batches(Pages(1, 1, shared_level(Level.ONE_FIELD)), processes=1)
    first = next(batches)
    for child in set(multiprocessing.active_children()) - set(others):
        child.kill()
    for _ in range(12):  # more than are drawn ahead
        assert next(batches).images.shape[1:] == first.images.shape[1:]
    del batches  # which ends them


def test_an_average_lies_between_two_checkpoints_and_loads_like_one(tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(MODEL, changed)
    shards = sorted(changed.glob("model*.safetensors"))
    with safe_open(shards[0], "pt") as opened:
        metadata = opened.metadata()
    save_file({name: weight + 1 for name, weight in load_file(shards[0]).items()}, shards[0], metadata=metadata)
    average(MODEL, changed, 0.25, tmp_path / "between")
    assert sorted(path.name for path in (tmp_path / "between").iterdir()) == sorted(
        path.name for path in MODEL.iterdir()
    )
    for path in shards:
        before, after = load_file(MODEL / path.name), load_file(tmp_path / "between" / path.name)
        step = 0.25 if path == shards[0] else 0.0
        for name, weight in before.items():
            assert after[name].dtype == weight.dtype
            torch.testing.assert_close(after[name].float(), weight.float() + step, rtol=1e-2, atol=1e-2)
    with pytest.raises(FileExistsError):
        average(MODEL, changed, 0.25, tmp_path / "between")
