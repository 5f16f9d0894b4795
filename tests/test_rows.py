from __future__ import annotations

from idefics_cli.config import ModelSettings, PageSettings, RunSettings, Split
from idefics_cli.records import Answer, Document, Job, Question
from idefics_cli.rows import PageFacts, RowToBe, answer_settings, differing_settings, finished_row, row_key
from tests.fakes import FakeEngine

JOB = Job(Question("q", "f:1", id="7", extra={"mine": 1}), Document("a.pdf", "a.pdf"))
PAGE = PageFacts("pdfium", 1, "blank page")


def to_be(**changes: object) -> RowToBe:
    values: dict[str, object] = {"pages": (1, 2), "facts": {1: PAGE, 2: PAGE}, "raster_ms": 5.0}
    return RowToBe(JOB, 0.0, **(values | changes))  # type: ignore[arg-type]


def test_the_most_probable_page_answers_and_all_pages_are_paid_for() -> None:
    answers = {1: Answer(0, "one", 0.2, decode_ms=3.0), 2: Answer(1, "two", 0.9, decode_ms=4.0, warning="cut")}
    row = finished_row(to_be(answers=answers), "m")
    assert (row.answer, row.page, row.status, row.confidence, row.decode_ms) == ("two", "2", "ok", 0.9, 7.0)
    assert row.warning == "blank page; cut"
    assert (row.id, row.extra) == ("7", {"mine": 1})


def test_a_page_that_failed_is_a_warning_while_another_answers() -> None:
    row = finished_row(to_be(facts={2: PAGE}, answers={2: Answer(1, "two", 0.9)}, page_failures=["x: page 1"]), "m")
    assert row.status == "ok"
    assert "1 of 2 pages failed: x: page 1" in row.warning
    row = finished_row(to_be(facts={}, page_failures=["render-failed: page 1", "render-failed: page 2"]), "m")
    assert (row.status, row.error, row.page, row.answer, row.confidence) == (
        "failed",
        "render-failed: page 1",
        "1-2",
        "",
        None,
    )


def test_every_setting_that_changes_answers_changes_the_key() -> None:
    engine = FakeEngine()
    variants = [
        RunSettings(),
        RunSettings(pages=PageSettings(split=Split.NEVER)),
        RunSettings(model=ModelSettings(prompt="{question}!")),
        RunSettings(model=ModelSettings(max_new_tokens=5)),
    ]
    keys = {row_key(to_be(), "digest", answer_settings(engine, settings)) for settings in variants}
    assert len(keys) == len(variants)
    same = RunSettings(pages=PageSettings(workers=3), model=ModelSettings(batch_size=7))
    assert row_key(to_be(), "digest", answer_settings(engine, same)) in keys
    assert row_key(to_be(), "other", answer_settings(engine, same)) not in keys
    assert row_key(to_be(), None, answer_settings(engine, same)) not in keys


def test_a_key_tells_which_settings_its_row_was_answered_with() -> None:
    engine = FakeEngine()
    here = answer_settings(engine, RunSettings())
    other = RunSettings(pages=PageSettings(split=Split.NEVER), model=ModelSettings(max_new_tokens=5))
    key = row_key(to_be(), "digest", answer_settings(engine, other))
    assert len(key) == 64
    assert differing_settings(key, here) == ["--max-new-tokens", "--split"]
    assert differing_settings(row_key(to_be(), "other", here), here) == []
