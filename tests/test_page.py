from __future__ import annotations

import os
import pickle
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import PageSettings
from idefics_cli.documents.fetch import fetch
from idefics_cli.documents.page import open_document, prepare_page
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.errors import Failure, FailureKind, RowFailedError
from idefics_cli.records import Document, PreparedPage
from tests.pdfs import one_page, write_pdf

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"
SETTINGS = PageSettings()
TINY = Idefics2ImageProcessor(490, 196)


def sample(name: str) -> Document:
    return Document(name, str(SAMPLES / name))


def prepared(document: Document, settings: PageSettings = SETTINGS, page: int = 1) -> PreparedPage:
    return prepare_page(document, open_document(document, settings), page, settings, TINY)


def failure_of(document: Document, settings: PageSettings = SETTINGS, page: int = 1) -> Failure:
    with pytest.raises(RowFailedError) as caught:
        prepared(document, settings, page)
    return caught.value.failure


def test_opening_counts_pages_and_hashes_bytes(tmp_path: Path) -> None:
    assert open_document(sample("invoice.pdf"), SETTINGS).pages == 3
    assert open_document(sample("fax.tiff"), SETTINGS).pages == 3
    one = open_document(sample("letter.pdf"), SETTINGS)
    copy = tmp_path / "renamed.pdf"
    copy.write_bytes((SAMPLES / "letter.pdf").read_bytes())
    assert open_document(Document("x", str(copy)), SETTINGS).digest == one.digest
    assert len(pickle.dumps(one)) < 1000
    assert pickle.loads(pickle.dumps(one)) == one


def test_bytes_without_a_file_are_kept_in_the_folder(tmp_path: Path) -> None:
    data = (SAMPLES / "letter.pdf").read_bytes()
    document = Document("data:...", data=data)
    info = open_document(document, SETTINGS, str(tmp_path))
    assert Path(info.path).parent == tmp_path
    assert Path(info.path).read_bytes() == data
    assert prepare_page(document, info, 1, SETTINGS, TINY).crops
    with pytest.raises(RowFailedError):
        open_document(Document("data:...", data=b"no document"), SETTINGS, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RowFailedError) as caught:
        open_document(document, SETTINGS, str(tmp_path / "missing"))
    assert caught.value.failure.kind is FailureKind.UNREADABLE


def test_an_address_is_fetched_when_the_document_is_opened(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SAMPLES))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/invoice.pdf"
        document = Document(url, url=url)
        info = open_document(document, SETTINGS, str(tmp_path), partial(fetch, is_allowed=lambda _: True))
        with pytest.raises(RowFailedError, match="not on the public internet"):
            open_document(document, SETTINGS, str(tmp_path))
        server.shutdown()
    assert info.pages == 3
    assert info.digest == open_document(sample("invoice.pdf"), SETTINGS).digest
    assert [str(path) for path in tmp_path.iterdir()] == [info.path]
    assert prepare_page(document, info, 3, SETTINGS, TINY).rasterizer == "pdfium"


def test_bad_documents_have_kinds(tmp_path: Path) -> None:
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "text.pdf").write_bytes(b"just text")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nbroken")
    (tmp_path / "folder.pdf").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    Image.new("L", (200, 200)).save(tmp_path / "big.png")
    locked = write_pdf(tmp_path / "locked.pdf", password="x")
    named = {name: Document(name, str(tmp_path / name)) for name in os.listdir(tmp_path)}
    for name in ("empty.pdf", "broken.pdf", "folder.pdf", "pipe.pdf"):
        assert failure_of(named[name]).kind is FailureKind.UNREADABLE
    assert failure_of(named["text.pdf"]).kind is FailureKind.UNSUPPORTED
    assert failure_of(named["big.png"], PageSettings(max_pixels=100)).kind is FailureKind.TOO_LARGE
    assert failure_of(locked).kind is FailureKind.ENCRYPTED
    assert failure_of(sample("invoice.pdf"), page=4).kind is FailureKind.NO_SUCH_PAGE
    for name in ("gone.pdf", "x" * 256, "a\0b.pdf", "\ud800.pdf"):
        assert failure_of(Document(name, str(tmp_path / name))).kind is FailureKind.UNREADABLE


def test_documents_with_too_many_pages_are_refused() -> None:
    assert failure_of(sample("invoice.pdf"), PageSettings(max_pages=2)).kind is FailureKind.TOO_LARGE
    assert prepared(sample("invoice.pdf"), PageSettings(max_pages=3), page=3).crops


def test_a_documents_own_password_comes_before_that_of_the_settings(tmp_path: Path) -> None:
    path = str(write_pdf(tmp_path / "x.pdf", password="right").path)
    assert prepared(Document("x", path, password="right"), PageSettings(password="wrong")).crops
    assert prepared(Document("x", path), PageSettings(password="right")).crops
    failure = failure_of(Document("x", path, password="wrong"), PageSettings(password="right"))
    assert failure == Failure(FailureKind.ENCRYPTED, "the password is wrong")


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    for suffix, name in ((b".pdf", "letter.pdf"), (b".bmp", "notice.bmp")):
        raw = os.fsencode(tmp_path) + b"/caf\xe9" + suffix
        Path(os.fsdecode(raw)).write_bytes((SAMPLES / name).read_bytes())
        assert prepared(Document("x", os.fsdecode(raw))).crops


@pytest.mark.parametrize("how", ["replaced", "written over", "deleted"])
def test_a_document_that_changes_after_it_was_opened_fails(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.pdf"
    path.write_bytes(one_page(content=b"10 10 100 100 re f"))
    document = Document("x", str(path))
    info = open_document(document, SETTINGS)
    assert prepare_page(document, info, 1, SETTINGS, TINY).crops
    if how == "replaced":
        (tmp_path / "new.pdf").write_bytes(path.read_bytes())
        (tmp_path / "new.pdf").rename(path)
    elif how == "written over":
        time.sleep(0.02)
        path.write_bytes(path.read_bytes())
    else:
        path.unlink()
    with pytest.raises(RowFailedError) as caught:
        prepare_page(document, info, 1, SETTINGS, TINY)
    assert caught.value.failure == Failure(FailureKind.UNREADABLE, "changed while it was read")
    if how != "deleted":
        again = open_document(document, SETTINGS)
        assert prepare_page(document, again, 1, SETTINGS, TINY).crops


def test_a_page_says_what_it_is_and_what_it_cost(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), "beige").save(tmp_path / "x.png")
    page = prepared(Document("x", str(tmp_path / "x.png")))
    assert "blank" in page.warning
    assert page.rasterizer == "pillow"
    assert page.raster_ms > 0
    letter = prepared(sample("letter.pdf"))
    assert (letter.warning, letter.rasterizer) == ("", "pdfium")
    assert letter.prepare_ms > 0


def test_the_processor_decides_size_and_crops() -> None:
    @dataclass
    class Half:
        longest_edge: int = 300

        def render_edge(self, *, split: bool) -> int:
            return 450 if split else 150

        def crops(self, page: Image.Image, *, split: bool) -> tuple[object, ...]:
            return (page.size, split)

        def columns(self, width: int, height: int, *, split: bool) -> int:
            return 0

    document = sample("letter.pdf")
    info = open_document(document, SETTINGS)
    size, split = prepare_page(document, info, 1, SETTINGS, Half()).crops  # type: ignore[arg-type]
    assert max(size) == (450 if split else 150)
