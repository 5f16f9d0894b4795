from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.documents.discover import expand, find, from_data_uri
from idefics_cli.errors import FailureKind, InputError, RowFailedError

Png = Callable[..., Path]


def test_folders_are_searched_below_in_sorted_order(tmp_path: Path, grey_png: Png) -> None:
    for name in ("b/scan.png", "a/scan.PNG", "a/notes.txt", "c.jpg"):
        grey_png(name.replace("txt", "png"), 9).rename(tmp_path / name)
    (tmp_path / "folder.pdf").mkdir()
    names = [Path(document.name).relative_to(tmp_path).as_posix() for document in find([str(tmp_path)])]
    assert names == ["c.jpg", "a/scan.PNG", "b/scan.png"]


def test_one_name_in_two_folders_stays_two_documents_and_one_file_named_twice_one(
    tmp_path: Path, grey_png: Png
) -> None:
    first, second = grey_png("a/x.png", 1), grey_png("b/x.png", 2)
    assert len(find([str(first), str(second), str(first), str(tmp_path)])) == 2


def test_globs(tmp_path: Path, grey_png: Png) -> None:
    grey_png("deep/er/x.png", 1)
    assert [document.name for document in expand(f"{tmp_path}/**/*.png")] == [f"{tmp_path}/deep/er/x.png"]


@pytest.mark.parametrize("name", ["missing.pdf", "*.none", "empty"])
def test_what_matches_nothing_is_an_input_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name.replace("*", r"\*")):
        find([str(tmp_path / name)])


def test_data_uris() -> None:
    document = from_data_uri("data:image/png;base64," + base64.b64encode(b"x" * 99).decode())
    assert document.data == b"x" * 99
    assert len(document.name) == 48
    assert from_data_uri("data:text/plain,a%20b").data == b"a b"
    for bad in ("data:nonsense", "data:image/png;base64,@@@"):
        with pytest.raises(RowFailedError) as caught:
            from_data_uri(bad)
        assert caught.value.kind is FailureKind.UNREADABLE
