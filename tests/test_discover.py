from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.documents.discover import PassedOver, expand, find, from_data_uri, is_below
from idefics_cli.errors import FailureKind, InputError, RowFailedError


def files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder: Path, *names: str) -> list[str]:
    documents = find([str(folder / name) for name in names])
    return [Path(document.name).relative_to(folder).as_posix() for document in documents]


def test_folders_are_searched_below_in_sorted_order(tmp_path: Path) -> None:
    files(tmp_path, "b/scan.png", "a/scan.PNG", "a/notes.txt", "c.jpg")
    (tmp_path / "folder.pdf").mkdir()
    assert found(tmp_path, "") == ["c.jpg", "a/scan.PNG", "b/scan.png"]


def test_one_name_in_two_folders_stays_two_documents_and_one_file_named_twice_one(tmp_path: Path) -> None:
    files(tmp_path, "a/x.png", "b/x.png")
    assert found(tmp_path, "a/x.png", "b/x.png", "a/x.png", "") == ["a/x.png", "b/x.png"]


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "deep/er/x.png", "y.PDF", "deep/z.pdf", "deep/.hidden/h.pdf", ".h.pdf", "deep/n.txt")
    assert found(tmp_path, "**/*.png") == ["deep/er/x.png"]
    assert found(tmp_path, "**/*.pdf") == ["deep/z.pdf", "y.PDF"]
    assert found(tmp_path, "**") == ["deep/er/x.png", "deep/z.pdf", "y.PDF"]
    assert found(tmp_path, "*/z.pdf") == ["deep/z.pdf"]
    assert found(tmp_path, "d??p/[y-z].*") == ["deep/z.pdf"]
    assert found(tmp_path, "deep/**/x.png") == ["deep/er/x.png"]
    monkeypatch.chdir(tmp_path)
    assert [document.name for document in expand("**/*.pdf")] == ["deep/z.pdf", "y.PDF"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    files(tmp_path, "scan[1].png", "scan1.png")
    assert found(tmp_path, "scan[1].png") == ["scan[1].png"]


def test_links_that_lead_in_circles_are_not_followed(tmp_path: Path) -> None:
    files(tmp_path, "a/b/x.pdf")
    for number in range(20):
        (tmp_path / f"link{number}").symlink_to(".")
        (tmp_path / "a" / f"up{number}").symlink_to("..")
    (tmp_path / "self.pdf").symlink_to("self.pdf")
    assert found(tmp_path, "**/*.pdf") == ["a/b/x.pdf", "self.pdf"]
    assert found(tmp_path, "") == ["self.pdf", "a/b/x.pdf"]


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    files(tmp_path, "x.pdf", "notes.txt", "sub/table.xlsx", "sub/.DS_Store")
    (tmp_path / "linked").symlink_to("sub")
    passed_over = PassedOver()
    assert len(find([str(tmp_path)], passed_over)) == 1
    assert passed_over.count == 3
    assert passed_over.examples == [
        f"{tmp_path}/linked (a link to a folder)", f"{tmp_path}/notes.txt", f"{tmp_path}/sub/table.xlsx"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["missing.pdf", "*.none", "empty", "missing/*.pdf"])
def test_what_matches_nothing_is_an_input_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name.replace("*", r"\*")):
        find([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["x" * 256 + ".pdf", "a\0b.pdf", "\ud800.pdf", "x" * 256 + "/*.pdf"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    if "*" not in name:
        with pytest.raises(RowFailedError) as caught:
            expand(str(tmp_path / name))
        assert caught.value.failure.kind is FailureKind.UNREADABLE
    with pytest.raises(InputError):
        find([str(tmp_path / name)])


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.pdf"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    for pattern in (str(tmp_path), f"{tmp_path}/*.pdf", os.fsdecode(raw)):
        (document,) = find([pattern])
        assert os.fsencode(document.path or "") == raw
        assert pickle.loads(pickle.dumps(document)) == document


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "inbox" / "forbidden"
    files(folder, "deep/x.pdf")
    files(tmp_path / "inbox", "y.pdf")
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


FIND_AS_SOMEONE = """
import os, sys
from idefics_cli.documents.discover import PassedOver, find
from idefics_cli.errors import InputError
if os.geteuid() == 0:  # root may enter any folder
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
passed_over = PassedOver()
try:
    print([d.name for d in find([sys.argv[1]], passed_over)], passed_over.examples)
except InputError as error:
    print("InputError", error)
"""


def test_folders_that_may_not_be_entered_are_named(forbidden: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for parent in forbidden.parents:  # pytest's folders are for their owner only
        if parent.is_relative_to(tmp_path_factory.getbasetemp().parent.parent) and not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)

    def told(path: Path) -> str:
        command = [sys.executable, "-c", FIND_AS_SOMEONE, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    inbox = forbidden.parent
    assert told(inbox) == f"['{inbox}/y.pdf'] ['{forbidden} (Permission denied)']\n"
    for path in (forbidden, forbidden / "deep", forbidden / "deep" / "x.pdf"):
        assert told(path) == f"InputError {path}: Permission denied\n"


def test_whether_a_name_lies_below_a_root_is_told_without_looking(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "out").symlink_to("/")
    (tmp_path / "alias").symlink_to(root)
    for name in ("in/x.pdf", "in", "missing/x.pdf", "**/*.pdf", "in/../*.pdf", "scan[1].pdf"):
        assert is_below(str(root / name), root), name
        assert is_below(str(root / name), tmp_path / "alias"), name
        assert is_below(str(tmp_path / "alias" / name), root), name
    for name in ("/", "/*", "/etc/passwd", "/missing/x", f"{root}/../x.pdf", f"{root}/out", f"{root}/out/etc/*", f"{root}/*/../../x", f"{root}x/y.pdf", f"{root}/a\0b"):  # fmt: skip
        assert not is_below(name, root), name


def test_data_uris() -> None:
    document = from_data_uri("data:image/png;base64," + base64.b64encode(b"x" * 99).decode())
    assert document.data == b"x" * 99
    assert len(document.name) == 48
    assert from_data_uri("data:text/plain,a%20b").data == b"a b"
    for bad in ("data:nonsense", "data:image/png;base64,@@@"):
        with pytest.raises(RowFailedError) as caught:
            from_data_uri(bad)
        assert caught.value.failure.kind is FailureKind.UNREADABLE
