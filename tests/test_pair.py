from __future__ import annotations

import os
from pathlib import Path

import pytest

from idefics_cli.documents import discover
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.questions.pair import Pairing, pair
from idefics_cli.records import Document, Question


def ask(document: str | None = None, password: str | None = None) -> Question:
    return Question("q", "q.csv:2", document=document, password=password)


def is_below(name: str, root: Path) -> bool:
    return Path(os.path.realpath(name.partition("*")[0])).is_relative_to(root.resolve())


def pairing(base: Path, *given: Path, root: Path | None = None, allow_urls: bool = False) -> Pairing:
    documents = [Document(str(path), str(path)) for path in given]
    return Pairing(documents, base, discover.expand, discover.from_data_uri, is_below, allow_urls=allow_urls, root=root)


def found(pairing: Pairing, name: str) -> list[str | None]:
    return [document.path for document in pairing.documents_of(ask(name))]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def refusal(pairing: Pairing, name: str | None) -> str:
    with pytest.raises(RowFailedError) as caught:
        pairing.documents_of(ask(name))
    assert caught.value.failure.kind is FailureKind.BAD_QUESTION
    return caught.value.failure.detail


def test_paths_start_at_the_questions_file_then_go_by_the_end_of_what_was_given(tmp_path: Path) -> None:
    given, near = touch(tmp_path / "in/deep/a.png"), touch(tmp_path / "q/a.png")
    both = pairing(tmp_path / "q", given)
    assert found(both, "a.png") == [str(near)]
    assert found(both, "deep/a.png") == [str(given)]
    assert found(both, "./deep/../deep/a.png") == [str(given)]
    assert found(both, "*.png") == [str(near)]
    assert found(both, str(given)) == [str(given)]


def test_globs_also_match_the_documents_given(tmp_path: Path) -> None:
    a, b, c = (touch(tmp_path / name) for name in ("in/2024/a.PDF", "in/2025/b.pdf", "in/2025/c.png"))
    given = pairing(tmp_path / "q", a, b, c)
    assert found(given, "*.pdf") == [str(a), str(b)]
    assert found(given, "2025/*.pdf") == [str(b)]
    assert found(given, "in/**/*.pdf") == [str(a), str(b)]
    assert found(given, "202[5]/?.*") == [str(b), str(c)]
    assert found(given, f"{tmp_path}/**/a.pdf") == [str(a)]
    assert "neither" in refusal(given, "/elsewhere/**/*.pdf")


def test_the_case_of_an_ending_does_not_matter_unless_it_tells_two_apart(tmp_path: Path) -> None:
    upper, lower = touch(tmp_path / "x/a.PDF"), touch(tmp_path / "y/a.pdf")
    assert found(pairing(tmp_path / "q", upper), "a.pdf") == [str(upper)]
    assert found(pairing(tmp_path / "q", upper, lower), "a.PDF") == [str(upper)]


def test_a_name_with_the_characters_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    given = touch(tmp_path / "in/a[1].pdf")
    assert found(pairing(tmp_path / "q", given, touch(tmp_path / "in/a1.pdf")), "a[1].pdf") == [str(given)]


def test_an_ambiguous_end_names_the_candidates(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "x/a.png"), touch(tmp_path / "y/a.png")
    assert (
        refusal(pairing(tmp_path, a, b), "a.png") == f"document 'a.png' may be any of {a}, {b}; give more of its path"
    )


def test_a_document_that_is_nowhere(tmp_path: Path) -> None:
    assert (
        refusal(pairing(tmp_path), "b.png")
        == f"document 'b.png' is neither in {tmp_path} nor among the documents given"
    )
    assert "none was given" in refusal(pairing(tmp_path), None)
    for name in ("a" * 300 + "/b.pdf", "nul\0.pdf", "**/" * 50 + "*.pdf", "..", "/", "*" * 1000, "caf\udce9.pdf"):
        assert len(refusal(pairing(tmp_path / "empty"), name) if name not in ("/", "..") else "") < 2000


def test_in_a_stream_it_is_a_row(tmp_path: Path) -> None:
    (job,) = pair([ask("gone.pdf")], pairing(tmp_path))
    assert job.document is None
    assert str(job.question.failure).startswith("bad-question: document 'gone.pdf'")


def test_data_uris(tmp_path: Path) -> None:
    (document,) = pairing(tmp_path, root=tmp_path / "root").documents_of(ask("data:,hello"))
    assert document.data == b"hello"
    (job,) = pair([ask("data:nothing")], pairing(tmp_path))
    assert job.question.failure
    assert job.question.failure.kind is FailureKind.UNREADABLE


def test_a_root_confines_what_lines_may_name_wherever_links_lead(tmp_path: Path) -> None:
    inside, outside = touch(tmp_path / "root/a.png"), touch(tmp_path / "secret.png")
    (tmp_path / "root" / "link.png").symlink_to(outside)
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    confined = pairing(tmp_path / "root", touch(tmp_path / "given/b.png"), root=tmp_path / "root")
    assert found(confined, "a.png") == [str(inside)]
    for name in ("link.png", "folder/secret.png", "../secret.png", str(outside), "*.png"):
        if name != "*.png":
            assert "neither below --root" in refusal(confined, name)
    # What stands on the command line is the user's own choice.
    assert found(confined, "b.png") == [str(tmp_path / "given/b.png")]
    assert confined.documents_of(ask()) == confined.documents


def test_a_refusal_below_a_root_looks_at_nothing_and_tells_nothing(tmp_path: Path) -> None:
    looked_at = []

    def expand(name: str) -> list[Document]:
        looked_at.append(name)
        return discover.expand(name)

    secret = touch(tmp_path / "secret.png")
    confined = Pairing((), tmp_path / "root", expand, discover.from_data_uri, is_below, root=tmp_path / "root")
    there, not_there = refusal(confined, str(secret)), refusal(confined, str(tmp_path / "absent.png"))
    assert there.replace("secret", "absent") == not_there
    refusal(confined, "/")
    assert looked_at == []


def test_an_address_is_a_document_only_where_that_is_allowed(tmp_path: Path) -> None:
    assert "only with --allow-urls" in refusal(pairing(tmp_path), "https://example.org/a.pdf")
    allowed = pairing(tmp_path, allow_urls=True, root=tmp_path)
    assert allowed.documents_of(ask("HTTPS://example.org/a.pdf")) == [
        Document("HTTPS://example.org/a.pdf", url="HTTPS://example.org/a.pdf")
    ]


def test_the_password_of_a_line_is_that_of_its_documents(tmp_path: Path) -> None:
    given = pairing(tmp_path, touch(tmp_path / "a.pdf"))
    assert [d.password for d in given.documents_of(ask("a.pdf", "secret"))] == ["secret"]
    assert [d.password for d in given.documents_of(ask(None, "secret"))] == ["secret"]
    assert [d.password for d in given.documents_of(ask())] == [None]
