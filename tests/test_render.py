from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import PageSettings, Rasterizer, Split
from idefics_cli.documents import pdf
from idefics_cli.documents.render import Edges, Rendered, count_pages, is_blank, render_image, render_pdf
from idefics_cli.errors import FailureKind, RowFailedError
from tests.pdfs import no_pages, one_page, write_pdf

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"
SETTINGS = PageSettings()
EDGES = Edges(490, 490, 980)
poppler = pytest.mark.skipif(not pdf.has_poppler(), reason="Poppler is not installed")


def rendered(path: Path, settings: PageSettings = SETTINGS, page: int = 1) -> Rendered:
    return render_pdf(str(path), page, settings, None, EDGES)


def test_a_page_to_be_split_is_rendered_at_the_size_for_splitting(tmp_path: Path) -> None:
    write_pdf(tmp_path / "small.pdf", font=10)
    write_pdf(tmp_path / "large.pdf", font=30)
    small, large = rendered(tmp_path / "small.pdf"), rendered(tmp_path / "large.pdf")
    assert (small.split, max(small.image.size)) == (True, 980)
    assert (large.split, max(large.image.size)) == (False, 490)
    for split in (Split.ALWAYS, Split.NEVER):
        assert rendered(tmp_path / "large.pdf", PageSettings(split=split)).split is (split is Split.ALWAYS)


def test_an_image_that_fits_as_it_is_is_not_split(tmp_path: Path) -> None:
    Image.effect_noise((300, 400), 90).save(tmp_path / "x.png")
    page = render_image(str(tmp_path / "x.png"), 1, SETTINGS, EDGES)
    assert (page.rasterizer, page.split) == ("pillow", False)
    assert render_image(str(tmp_path / "x.png"), 1, PageSettings(split=Split.ALWAYS), EDGES).split


def test_pages_are_counted(tmp_path: Path) -> None:
    assert count_pages(str(SAMPLES / "invoice.pdf"), SETTINGS, None) == (True, 3)
    assert count_pages(str(SAMPLES / "fax.tiff"), SETTINGS, None) == (False, 3)
    (tmp_path / "image.pdf").write_bytes((SAMPLES / "notice.bmp").read_bytes())
    assert count_pages(str(tmp_path / "image.pdf"), SETTINGS, None) == (False, 1)


def test_a_pdf_whose_mark_is_damaged_is_one_if_a_rasterizer_opens_it(tmp_path: Path) -> None:
    data = one_page(content=b"10 10 200 300 re f")
    (tmp_path / "mark.pdf").write_bytes(data.replace(b"%PDF-1.4", b"%PDF1.4", 1))
    (tmp_path / "late.pdf").write_bytes(b"\n" * 3000 + data)
    (tmp_path / "text.pdf").write_bytes(b"only text, no document")
    openable = ["mark.pdf", "late.pdf"] if pdf.has_poppler() else ["mark.pdf"]
    for name in openable:
        assert count_pages(str(tmp_path / name), SETTINGS, None) == (True, 1)
        assert not is_blank(rendered(tmp_path / name).image)
    with pytest.raises(RowFailedError) as caught:
        count_pages(str(tmp_path / "text.pdf"), SETTINGS, None)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED


@poppler
def test_poppler_renders_what_it_is_asked_for() -> None:
    path = SAMPLES / "dense-invoice.pdf"
    assert rendered(path, PageSettings(rasterizer=Rasterizer.POPPLER)).rasterizer == "poppler"
    assert rendered(path).rasterizer == "pdfium"


@poppler
def test_poppler_tries_what_pdfium_can_not_open(tmp_path: Path) -> None:
    (tmp_path / "late.pdf").write_bytes(b"\n" * 3000 + one_page(content=b"10 10 200 300 re f"))
    page = rendered(tmp_path / "late.pdf")
    assert page.rasterizer == "poppler"
    assert page.warning.startswith("rendered by Poppler: unreadable: PDFium can't open")


@poppler
def test_white_paper_for_what_pdfium_can_not_open_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "late.pdf").write_bytes(b"\n" * 3000 + one_page())
    with pytest.raises(RowFailedError, match="Poppler shows a blank page") as caught:
        rendered(tmp_path / "late.pdf")
    assert caught.value.failure.kind is FailureKind.UNREADABLE
    (tmp_path / "blank.pdf").write_bytes(one_page())
    assert is_blank(rendered(tmp_path / "blank.pdf").image)


def poppler_that_needs_no_password(folder: Path) -> None:
    (folder / "pdfinfo").write_text("#!/bin/sh\necho 'Pages:   2'\n")
    (folder / "pdftoppm").write_text("#!/bin/sh\nprintf 'P6\\n2 1\\n255\\nabcdef'\n")
    for name in ("pdfinfo", "pdftoppm"):
        (folder / name).chmod(0o755)


def test_a_second_rasterizer_is_asked_about_what_the_first_calls_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pdf(tmp_path / "x.pdf", password="secret")
    poppler_that_needs_no_password(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert count_pages(str(tmp_path / "x.pdf"), SETTINGS, None) == (True, 2)
    page = rendered(tmp_path / "x.pdf")
    assert page.rasterizer == "poppler"
    assert "encrypted" in page.warning


def test_without_a_second_rasterizer_the_first_ones_words_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    write_pdf(tmp_path / "x.pdf", password="secret")
    (tmp_path / "none.pdf").write_bytes(no_pages())
    with pytest.raises(RowFailedError) as caught:
        count_pages(str(tmp_path / "x.pdf"), SETTINGS, None)
    assert caught.value.failure.kind is FailureKind.ENCRYPTED
    with pytest.raises(RowFailedError) as caught:
        count_pages(str(tmp_path / "none.pdf"), SETTINGS, None)
    assert caught.value.failure.kind is FailureKind.UNREADABLE
    with pytest.raises(RowFailedError, match="load this page"):
        rendered(SAMPLES / "invoice.pdf", page=9)
