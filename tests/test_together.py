"""Several documents read in one prompt, and conversations, from a line to its row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.batch import run as run_batch
from idefics_cli.config import Across, Format, OutputSettings, PageSettings, RetryFailed, RunSettings, Split
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.errors import InputError
from idefics_cli.inputs import read_inputs
from idefics_cli.pipeline import run
from idefics_cli.records import PAGE, Document, Row, Turn
from idefics_cli.results.fingerprint import row_key
from tests.fakes import FakeEngine
from tests.pdfs import write_pdf

Png = Callable[..., Path]


def settings(**changes: Any) -> RunSettings:
    pages = PageSettings(**({"split": Split.NEVER} | changes))
    return RunSettings(pages=pages)


@pytest.fixture
def asked(tmp_path: Path, pool: PagePool, grey_png: Png) -> Callable[..., tuple[list[Row], FakeEngine]]:
    grey_png("dark.png", 40)
    grey_png("light.png", 200)
    frames = [grey_png(f"frames/{grey}.png", grey) for grey in (60, 120, 180)]
    first, *others = [Image.open(path) for path in frames]
    first.save(tmp_path / "frames.tiff", save_all=True, append_images=others)

    def ask(*lines: dict[str, object], **changes: Any) -> tuple[list[Row], FakeEngine]:
        file = tmp_path / "q.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        chosen, engine = settings(**changes), FakeEngine()
        rows = list(run(read_inputs([], str(file), chosen).jobs, engine, pool, chosen))
        return rows, engine

    return ask


@pytest.mark.parametrize("across", list(Across))
def test_documents_are_read_together_in_their_order(asked: Any, across: Across) -> None:
    parts = ["light.png", {"document": "frames.tiff", "page": "3,1"}, "dark.png", "light.png"]
    (row,), engine = asked({"question": "q", "documents": parts}, across=across)
    assert row.answer == "q @200+180+60+40+200"
    assert row.document.count("; ") == 3
    assert [Path(name).name for name in row.document.split("; ")] == [
        "light.png",
        "frames.tiff",
        "dark.png",
        "light.png",
    ]
    assert (row.page, row.crops, row.status, row.question) == ("1; 3,1; 1; 1", 5, "ok", "q")
    assert engine.conversations == [(Turn("user", (*[PAGE] * 5, "q")),)]


def test_pages_stand_where_messages_name_them(asked: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Look "}, {"type": "image", "image": "dark.png"}]},
        {"role": "assistant", "content": "Yes?"},
        {
            "role": "user",
            "content": [
                {"type": "document", "path": "frames.tiff", "page": "2-3"},
                {"type": "text", "text": "Which is darker?"},
            ],
        },
    ]
    (row,), engine = asked({"messages": messages, "id": "x"})
    assert engine.conversations == [
        (
            Turn("user", ("Look ", PAGE)),
            Turn("assistant", ("Yes?",)),
            Turn("user", (PAGE, PAGE, "Which is darker?")),
        )
    ]
    assert (row.question, row.answer, row.page, row.id) == (
        "Which is darker?",
        "Which is darker? @40+120+180",
        "1; 2-3",
        "x",
    )


def test_messages_without_pages_are_about_the_lines_document(asked: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    rows, engine = asked({"messages": messages, "document": "frames.tiff"}, across=Across.EACH)
    assert [(row.page, row.answer) for row in rows] == [("1", "second @60"), ("2", "second @120"), ("3", "second @180")]
    assert engine.conversations[0] == (
        Turn("system", ("Be brief.",)),
        Turn("user", (PAGE, "first")),
        Turn("assistant", ("one",)),
        Turn("user", ("second",)),
    )
    _, engine = asked({"messages": messages, "document": "frames.tiff"}, across=Across.TOGETHER)
    assert engine.conversations[0][1] == Turn("user", (PAGE, PAGE, PAGE, "first"))


def test_one_document_that_fails_fails_the_row_and_is_named(asked: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    rows, engine = asked(
        {"question": "q", "documents": ["dark.png", "broken.pdf"]},
        {"question": "q", "documents": ["dark.png", {"document": "frames.tiff", "page": 4}]},
        {"question": "q", "documents": ["dark.png"]},
    )
    errors = {row.error.partition(": ")[0]: row.error for row in rows}
    assert errors.keys() == {"unreadable", "no-such-page", ""}
    assert f"{tmp_path}/broken.pdf: " in errors["unreadable"]
    assert f"{tmp_path}/frames.tiff: page 4" in errors["no-such-page"]
    assert len(engine.asked) == 1


def test_keys_tell_conversations_and_documents_apart(asked: Any, pool: PagePool, tmp_path: Path) -> None:
    def turns(answer: str, *parts: object) -> list[object]:
        return [
            {"role": "user", "content": [*parts, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "q"},
        ]

    dark, light = {"type": "image", "image": "dark.png"}, {"type": "image", "image": "light.png"}
    rows, _ = asked(
        {"question": "q", "document": "dark.png"},
        {"question": "q", "documents": ["dark.png"]},
        {"question": "q", "documents": ["dark.png", "light.png"]},
        {"question": "q", "documents": ["light.png", "dark.png"]},
        {"messages": turns("one"), "document": "dark.png"},
        {"messages": turns("two"), "document": "dark.png"},
        {"messages": turns("one", dark, light)},
        {"messages": turns("one", dark, {"type": "text", "text": " "}, light)},
    )
    assert all(row.status == "ok" for row in rows)
    assert len({row.key for row in rows}) == len(rows)
    path = str(tmp_path / "dark.png")
    digest = result_of(pool.open(Document(path, path)), DocumentInfo).digest
    assert row_key(digest, "1", "q", "") in {row.key for row in rows}


def test_the_key_of_a_plain_question_is_what_it_was() -> None:
    assert row_key("d" * 64, "1-3", "What is the total?", 7) == "eb30d05556bd097c35ce4472a02b2e13"


def test_resume_goes_on_with_conversations(tmp_path: Path, grey_png: Png) -> None:
    grey_png("a.png", 40)
    grey_png("b.png", 90)
    first = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]}
    lines: list[dict[str, object]] = [{"messages": [first]}, {"question": "both", "documents": ["a.png", "b.png"]}]
    file, output = tmp_path / "q.jsonl", tmp_path / "out.csv"

    def batch() -> FakeEngine:
        engine = FakeEngine()
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        chosen = RunSettings(
            PageSettings(split=Split.NEVER, workers=1),
            output=OutputSettings(output, Format.CSV, resume=True, retry_failed=RetryFailed.ALL),
        )
        with (tmp_path / "stdout").open("w") as stdout:
            run_batch([], str(file), chosen, stdout, engine=engine)
        return engine

    assert len(batch().asked) == 2
    assert batch().asked == []
    (tmp_path / "b.png").rename(tmp_path / "c.png")  # what is read is the same
    lines[1] = {"question": "both", "documents": ["a.png", "c.png"]}
    lines.append({"messages": [first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "q"}]})
    assert [question for question, _ in batch().asked] == ["q"]
    assert batch().asked == []


def test_pages_of_a_pdf_among_images(tmp_path: Path, asked: Any) -> None:
    write_pdf(tmp_path / "one.pdf")
    (row,), _ = asked({"question": "q", "documents": ["dark.png", "one.pdf"]})
    assert (row.status, row.page) == ("ok", "1; 1")


def test_more_pages_than_any_prompt_holds_are_not_even_rendered(asked: Any, tmp_path: Path) -> None:
    frames = [Image.new("L", (20, 20), 8 * number) for number in range(30)]
    frames[0].save(tmp_path / "many.tiff", save_all=True, append_images=frames[1:])
    (row,), engine = asked({"question": "q", "documents": ["many.tiff"] * 17})
    assert row.error == "too-large: 510 pages; at most 500 are read together"
    assert engine.asked == []


def test_a_folder_of_more_documents_than_are_read_together_is_refused(tmp_path: Path) -> None:
    for number in range(501):
        (tmp_path / f"{number}.png").touch()
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "q", "documents": ["*.png"]}))
    with pytest.raises(InputError, match=r"q.jsonl:1: bad-question: documents: 501 documents; at most 500"):
        read_inputs([], str(file), settings())
    with pytest.raises(InputError, match=r"--together: 501 documents; at most 500"):
        read_inputs([str(tmp_path)], ["q"], settings(), together=True)
