from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from idefics_cli.documents import pdf
from idefics_cli.errors import FailureKind, RowFailedError
from tests.pdfs import no_pages, unnamed_font, write_pdf

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"


@pytest.mark.parametrize("size", [(612, 792), (792, 612), (595.28, 841.89), (10, 5000), (3, 3)])
def test_pages_render_to_a_pixel_budget_never_to_a_resolution(tmp_path: Path, size: tuple[float, float]) -> None:
    write_pdf(tmp_path / "x.pdf", size=size)
    with pdf.pdfium(str(tmp_path / "x.pdf"), None) as opened:
        for edge in (490, 980, 1960):
            assert max(pdf.render_with_pdfium(opened[0], edge).size) == edge


def test_a_page_of_2_to_the_31_points_costs_no_more(tmp_path: Path) -> None:
    write_pdf(tmp_path / "x.pdf")
    text = (tmp_path / "x.pdf").read_bytes().replace(b"[ 0 0 612 792 ]", b"[ 0 0 2147483648 2147483648 ]")
    (tmp_path / "x.pdf").write_bytes(text)
    try:
        with pdf.pdfium(str(tmp_path / "x.pdf"), None) as opened:
            assert max(pdf.render_with_pdfium(opened[0], 490).size) == 490
    except RowFailedError as error:
        assert error.failure.kind in (FailureKind.RENDER_FAILED, FailureKind.UNREADABLE)


def test_the_text_layer_tells_the_em(tmp_path: Path) -> None:
    write_pdf(tmp_path / "x.pdf", font=12)
    with pdf.pdfium(str(tmp_path / "x.pdf"), None) as opened:
        ems = pdf.text_ems(opened[0])
        assert len(ems) > 100
        assert ems[0] * 792 == pytest.approx(12)


def test_a_scan_with_a_stamp_has_no_text_layer_to_go_by(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "x.pdf"))
    Image.new("L", (50, 50), 90).save(tmp_path / "x.png")
    canvas.drawImage(str(tmp_path / "x.png"), 0, 0, 500, 700)
    canvas.drawString(40, 40, "page 1")
    canvas.save()
    with pdf.pdfium(str(tmp_path / "x.pdf"), None) as opened:
        assert pdf.text_ems(opened[0]) == []


def kind_of(path: Path, password: str | None = None) -> FailureKind:
    with pytest.raises(RowFailedError) as caught, pdf.pdfium(str(path), password):
        pass
    return caught.value.failure.kind


def test_encrypted(tmp_path: Path) -> None:
    document = write_pdf(tmp_path / "x.pdf", password="secret")
    for password, words in ((None, "--password"), ("wrong", "wrong")):
        with pytest.raises(RowFailedError, match=words) as caught, pdf.pdfium(str(document.path), password):
            pass
        assert caught.value.failure.kind is FailureKind.ENCRYPTED
    with pdf.pdfium(str(document.path), "secret") as opened:
        assert len(opened) == 1


def test_a_failure_is_judged_by_the_document_not_by_the_one_before_it(tmp_path: Path) -> None:
    write_pdf(tmp_path / "locked.pdf", password="secret")
    (tmp_path / "empty.pdf").write_bytes(no_pages())
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    assert kind_of(tmp_path / "locked.pdf") is FailureKind.ENCRYPTED
    assert kind_of(tmp_path / "empty.pdf") is FailureKind.UNREADABLE
    assert kind_of(tmp_path / "locked.pdf") is FailureKind.ENCRYPTED
    assert kind_of(tmp_path / "broken.pdf") is FailureKind.UNREADABLE
    assert kind_of(tmp_path / "gone.pdf") is FailureKind.UNREADABLE


def test_pixels_do_not_depend_on_the_pages_drawn_before(tmp_path: Path) -> None:
    paths = []
    for number, font in enumerate(
        (b"UnknownSans", b"UnknownSans-BoldItalic", b"Arial,Bold", b"Times#20Odd", b"Courier-Odd")
    ):
        paths.append(tmp_path / f"{number}.pdf")
        paths[-1].write_bytes(unnamed_font(b"Total amount due", font))

    def pixels(path: Path) -> bytes:
        with pdf.pdfium(str(path), None) as opened:
            return pdf.render_with_pdfium(opened[0], 490).tobytes()

    first = [pixels(path) for path in paths]
    assert [pixels(path) for path in reversed(paths)] == first[::-1]


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.pdf")
    write_pdf(tmp_path / "x.pdf")
    (tmp_path / "x.pdf").rename(path)
    with pdf.pdfium(path, None) as opened:
        assert len(opened) == 1
    if pdf.has_poppler():
        assert pdf.poppler_page_count(path, None) == 1


def test_a_pdf_is_known_by_its_head_not_its_ending() -> None:
    assert pdf.is_pdf(b"junk\n%PDF-1.4")
    assert not pdf.is_pdf(b"\x89PNG")


poppler = pytest.mark.skipif(not pdf.has_poppler(), reason="Poppler is not installed")


@poppler
def test_poppler_renders_to_the_same_budget(tmp_path: Path) -> None:
    document = write_pdf(tmp_path / "x.pdf")
    assert pdf.poppler_page_count(str(document.path), None) == 1
    assert max(pdf.render_with_poppler(str(document.path), 1, 490, None).size) == 490


@poppler
def test_a_name_that_looks_like_an_option_is_a_name_to_poppler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pdf(tmp_path / "-v")
    monkeypatch.chdir(tmp_path)
    assert pdf.poppler_page_count("-v", None) == 1


@poppler
def test_poppler_says_what_it_can_not_do(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    with pytest.raises(RowFailedError) as caught:
        pdf.poppler_page_count(str(tmp_path / "x.pdf"), None)
    assert caught.value.failure.kind is FailureKind.UNREADABLE
    document = write_pdf(tmp_path / "y.pdf")
    with pytest.raises(RowFailedError) as caught:
        pdf.render_with_poppler(str(document.path), 7, 490, None)
    assert caught.value.failure.kind is FailureKind.RENDER_FAILED
    locked = write_pdf(tmp_path / "z.pdf", password="secret")
    with pytest.raises(RowFailedError) as caught:
        pdf.poppler_page_count(str(locked.path), None)
    assert caught.value.failure.kind is FailureKind.ENCRYPTED
    assert pdf.poppler_page_count(str(locked.path), "secret") == 1


def test_without_poppler_the_words_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RowFailedError, match="not installed"):
        pdf.render_with_poppler(str(SAMPLES / "letter.pdf"), 1, 490, None)
