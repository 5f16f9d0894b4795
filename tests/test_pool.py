from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import PageSettings, Rasterizer, Split
from idefics_cli.documents import pdf
from idefics_cli.documents.rasterize import DocumentInfo, PagePool, inspect, prepare, result_of
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document, PreparedPage
from tests.conftest import SAMPLES, TINY
from tests.test_pdf import write_pdf

SETTINGS = PageSettings()


def sample(name: str) -> Document:
    return Document(name, str(SAMPLES / "documents" / name))


def test_inspect_counts_pages_and_hashes_bytes(tmp_path: Path) -> None:
    assert inspect(sample("invoice.pdf"), SETTINGS).pages == 3
    assert inspect(sample("fax.tiff"), SETTINGS).pages == 3
    one = inspect(sample("letter.pdf"), SETTINGS)
    copy = tmp_path / "renamed.pdf"
    copy.write_bytes((SAMPLES / "documents" / "letter.pdf").read_bytes())
    assert inspect(Document("x", str(copy)), SETTINGS).digest == one.digest
    assert inspect(Document("data", data=copy.read_bytes()), SETTINGS).digest == one.digest


def kind_of(document: Document, settings: PageSettings = SETTINGS) -> FailureKind:
    with pytest.raises(RowFailedError) as caught:
        inspect(document, settings)
        prepare(document, 1, settings, TINY)
    return caught.value.kind


def test_bad_documents_have_kinds(tmp_path: Path) -> None:
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "text.pdf").write_bytes(b"just text")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nbroken")
    (tmp_path / "folder.pdf").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    Image.new("L", (200, 200)).save(tmp_path / "big.png")
    locked = write_pdf(tmp_path / "locked.pdf", password="x")
    named = {name: Document(name, str(tmp_path / name)) for name in os.listdir(tmp_path)}
    assert kind_of(named["empty.pdf"]) is FailureKind.UNREADABLE
    assert kind_of(named["text.pdf"]) is FailureKind.UNSUPPORTED
    assert kind_of(named["broken.pdf"]) is FailureKind.UNREADABLE
    assert kind_of(named["folder.pdf"]) is FailureKind.UNREADABLE
    assert kind_of(named["pipe.pdf"]) is FailureKind.UNREADABLE
    assert kind_of(named["big.png"], PageSettings(max_pixels=100)) is FailureKind.TOO_LARGE
    assert kind_of(locked) is FailureKind.ENCRYPTED
    assert kind_of(Document("gone", str(tmp_path / "gone.pdf"))) is FailureKind.UNREADABLE


def test_a_page_to_be_split_is_rendered_at_twice_the_size(tmp_path: Path) -> None:
    small, large = write_pdf(tmp_path / "s.pdf", font=10), write_pdf(tmp_path / "l.pdf", font=30)
    pages = {name: prepare(document, 1, SETTINGS, TINY) for name, document in (("small", small), ("large", large))}
    assert (pages["small"].split, pages["large"].split) == (True, False)
    assert pages["small"].crops[0].shape == (490, 379, 3)
    assert pages["large"].crops[0].shape == (490, 379, 3)
    for split in (Split.ALWAYS, Split.NEVER):
        assert prepare(large, 1, PageSettings(split=split), TINY).split is (split is Split.ALWAYS)


def test_a_blank_page_is_answered_with_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), "beige").save(tmp_path / "x.png")
    page = prepare(Document("x", str(tmp_path / "x.png")), 1, SETTINGS, TINY)
    assert "blank" in page.warning
    assert page.rasterizer == "pillow"
    assert prepare(sample("letter.pdf"), 1, SETTINGS, TINY).warning == ""


@pytest.mark.skipif(not pdf.has_poppler(), reason="Poppler is not installed")
def test_poppler_renders_what_it_is_asked_for_and_what_pdfium_can_not(tmp_path: Path) -> None:
    settings = PageSettings(rasterizer=Rasterizer.POPPLER)
    assert prepare(sample("dense-invoice.pdf"), 1, settings, TINY).rasterizer == "poppler"
    assert prepare(sample("dense-invoice.pdf"), 1, SETTINGS, TINY).rasterizer == "pdfium"


def test_a_page_process_that_dies_loses_its_page_alone(pool: PagePool) -> None:
    died = pool._pool.schedule(os.kill, args=[0, 0])  # wakes the pool
    died.result()
    future = pool._pool.schedule(_die)
    with pytest.raises(RowFailedError) as caught:
        result_of(future, PreparedPage)
    assert caught.value.kind is FailureKind.RENDER_FAILED
    assert result_of(pool.inspect(sample("letter.pdf")), DocumentInfo).pages == 1


def test_a_page_that_hangs_is_ended_at_the_time_limit(pool: PagePool) -> None:
    future = pool._pool.schedule(time.sleep, args=[600], timeout=0.5)
    with pytest.raises(RowFailedError, match="--page-timeout") as caught:
        result_of(future, PreparedPage)
    assert caught.value.kind is FailureKind.TIMED_OUT
    assert result_of(pool.prepare(sample("notice.bmp"), 1, TINY), PreparedPage).rasterizer == "pillow"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_documents_with_too_many_pages_are_refused() -> None:
    assert kind_of(sample("invoice.pdf"), PageSettings(max_pages=2)) is FailureKind.TOO_LARGE
    assert inspect(sample("invoice.pdf"), PageSettings(max_pages=3)).pages == 3


def test_a_page_that_needs_more_memory_than_a_process_has_fails_alone(tmp_path: Path) -> None:
    Image.new("1", (40_000, 25_000)).save(tmp_path / "bomb.png")  # 3 GB in RGB, 125 kB on disk
    document = Document("bomb", str(tmp_path / "bomb.png"))
    with PagePool(PageSettings(workers=1, max_pixels=2_000_000_000)) as pool:
        with pytest.raises(RowFailedError) as caught:
            result_of(pool.prepare(document, 1, TINY), PreparedPage)
        assert caught.value.kind is FailureKind.TOO_LARGE
        assert result_of(pool.prepare(sample("notice.bmp"), 1, TINY), PreparedPage).crops
