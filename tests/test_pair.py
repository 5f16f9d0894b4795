from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.documents import discover
from idefics_cli.errors import InputError, RowFailedError
from idefics_cli.questions.pair import Pairing, pair, pair_all
from idefics_cli.records import Document, Question

Png = Callable[..., Path]


def ask(text: str, document: str | None = None) -> Question:
    return Question(text, "q.csv:2", document=document)


def pairing(base: Path, *given: Path) -> Pairing:
    return Pairing(discover.find([str(path) for path in given]), base, discover.expand, discover.from_data_uri)


def test_a_question_without_document_asks_every_document(tmp_path: Path, grey_png: Png) -> None:
    a, b = grey_png("a.png", 1), grey_png("b.png", 2)
    jobs = pair_all([ask("one"), ask("two")], pairing(tmp_path, a, b))
    # the questions of one document stand together
    assert [(Path(j.document.name).name, j.question.text) for j in jobs if j.document] == [
        ("a.png", "one"),
        ("a.png", "two"),
        ("b.png", "one"),
        ("b.png", "two"),
    ]


def test_paths_start_at_the_questions_file_then_go_by_the_end_of_what_was_given(tmp_path: Path, grey_png: Png) -> None:
    given, near = grey_png("in/deep/a.png", 1), grey_png("q/a.png", 2)
    both = pairing(tmp_path / "q", given)
    assert [d.path for d in both.documents_of(ask("q", "a.png"))] == [str(near)]
    assert [d.path for d in both.documents_of(ask("q", "deep/a.png"))] == [str(given)]
    assert [d.path for d in both.documents_of(ask("q", "*.png"))] == [str(near)]
    assert [d.path for d in both.documents_of(ask("q", str(given)))] == [str(given)]


def test_an_ambiguous_end_and_a_document_that_is_nowhere_are_errors_with_their_line(
    tmp_path: Path, grey_png: Png
) -> None:
    a, b = grey_png("x/a.png", 1), grey_png("y/a.png", 2)
    with pytest.raises(InputError, match=r"q\.csv:2: .*may be any of .*x/a\.png, .*y/a\.png"):
        pair_all([ask("q", "a.png")], pairing(tmp_path, a, b))
    with pytest.raises(InputError, match=r"q\.csv:2: .*'b\.png' is neither"):
        pair_all([ask("q", "b.png")], pairing(tmp_path, a))
    with pytest.raises(InputError, match="names no document"):
        pair_all([ask("q")], pairing(tmp_path))


def test_in_a_stream_they_are_rows(tmp_path: Path) -> None:
    (job,) = pair([ask("q", "gone.pdf")], pairing(tmp_path))
    assert job.document is None
    assert str(job.question.failure).startswith("bad-question: document 'gone.pdf'")


def test_data_uris(tmp_path: Path) -> None:
    (document,) = pairing(tmp_path).documents_of(ask("q", "data:,hello"))
    assert document.data == b"hello"


def test_a_root_confines_what_lines_may_name_wherever_links_lead(tmp_path: Path, grey_png: Png) -> None:
    inside, outside = grey_png("root/a.png", 1), grey_png("secret.png", 2)
    (tmp_path / "root" / "link.png").symlink_to(outside)
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    given = discover.find([str(outside)])
    confined = Pairing(given, tmp_path / "root", discover.expand, discover.from_data_uri, root=tmp_path / "root")
    assert [d.path for d in confined.documents_of(ask("q", "a.png"))] == [str(inside)]
    for name in ("link.png", "folder/secret.png", "../secret.png", str(outside), "*.png"):
        with pytest.raises(RowFailedError, match="outside of --root"):
            confined.documents_of(ask("q", name))
    # What stands on the command line is the user's own choice.
    assert confined.documents_of(ask("q")) == given


def test_addresses_are_fetched_only_where_that_is_allowed(tmp_path: Path) -> None:
    asked = ask("q", "https://example.org/a.pdf")
    with pytest.raises(RowFailedError, match="--allow-urls"):
        pairing(tmp_path).documents_of(asked)
    fetched = Document("a", data=b"x")
    allowed = Pairing((), tmp_path, discover.expand, discover.from_data_uri, fetch=lambda url: fetched)
    assert allowed.documents_of(asked) == [fetched]
