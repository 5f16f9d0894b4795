from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from idefics_cli.documents import pdf
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document
from tests.conftest import SAMPLES


def write_pdf(path: Path, *, size: tuple[float, float] = (612, 792), font: float = 12, password: str = "") -> Document:
    canvas = Canvas(str(path), pagesize=size, encrypt=password or None)
    canvas.setFont("Helvetica", font)
    for line in range(10):
        canvas.drawString(40, size[1] - 60 - line * font * 1.5, "The quick brown fox jumps")
    canvas.save()
    return Document(path.name, str(path))


@pytest.mark.parametrize("size", [(612, 792), (792, 612), (595.28, 841.89), (10, 5000), (3, 3)])
def test_pages_render_to_a_pixel_budget_never_to_a_resolution(tmp_path: Path, size: tuple[float, float]) -> None:
    document = write_pdf(tmp_path / "x.pdf", size=size)
    with pdf.pdfium(document, None) as opened:
        for edge in (490, 980, 1960):
            assert max(pdf.render_with_pdfium(opened[0], edge).size) == edge


def test_a_page_of_2_to_the_31_points_costs_no_more(tmp_path: Path) -> None:
    document = write_pdf(tmp_path / "x.pdf")
    text = (tmp_path / "x.pdf").read_bytes().replace(b"[ 0 0 612 792 ]", b"[ 0 0 2147483648 2147483648 ]")
    (tmp_path / "x.pdf").write_bytes(text)
    try:
        with pdf.pdfium(document, None) as opened:
            assert max(pdf.render_with_pdfium(opened[0], 490).size) == 490
    except RowFailedError as failure:
        assert failure.kind in (FailureKind.RENDER_FAILED, FailureKind.UNREADABLE)


def test_the_text_layer_tells_the_em(tmp_path: Path) -> None:
    with pdf.pdfium(write_pdf(tmp_path / "x.pdf", font=12), None) as opened:
        ems = pdf.text_ems(opened[0])
        assert len(ems) > 100
        assert ems[0] * 792 == pytest.approx(12)


def test_a_scan_with_a_stamp_has_no_text_layer_to_go_by(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "x.pdf"))
    Image.new("L", (50, 50), 90).save(tmp_path / "x.png")
    canvas.drawImage(str(tmp_path / "x.png"), 0, 0, 500, 700)
    canvas.drawString(40, 40, "page 1")
    canvas.save()
    with pdf.pdfium(Document("x", str(tmp_path / "x.pdf")), None) as opened:
        assert pdf.text_ems(opened[0]) == []


def test_encrypted(tmp_path: Path) -> None:
    document = write_pdf(tmp_path / "x.pdf", password="secret")
    for password, words in ((None, "--password"), ("wrong", "wrong")):
        with pytest.raises(RowFailedError, match=words) as caught, pdf.pdfium(document, password):
            pass
        assert caught.value.kind is FailureKind.ENCRYPTED
    with pdf.pdfium(document, "secret") as opened:
        assert len(opened) == 1


def test_a_damaged_pdf_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    with pytest.raises(RowFailedError) as caught, pdf.pdfium(Document("x", str(tmp_path / "x.pdf")), None):
        pass
    assert caught.value.kind is FailureKind.UNREADABLE


def test_a_pdf_is_known_by_its_head_not_its_ending() -> None:
    assert pdf.is_pdf(b"junk\n%PDF-1.4")
    assert not pdf.is_pdf(b"\x89PNG")


poppler = pytest.mark.skipif(not pdf.has_poppler(), reason="Poppler is not installed")


@poppler
def test_poppler_renders_to_the_same_budget(tmp_path: Path) -> None:
    document = write_pdf(tmp_path / "x.pdf")
    assert pdf.poppler_page_count(document, None, 10) == 1
    assert max(pdf.render_with_poppler(document, 1, 490, None, 10).size) == 490
    data = Document("data", data=(tmp_path / "x.pdf").read_bytes())
    assert max(pdf.render_with_poppler(data, 1, 490, None, 10).size) == 490


@poppler
def test_poppler_says_what_it_can_not_do(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    with pytest.raises(RowFailedError) as caught:
        pdf.poppler_page_count(Document("x", str(tmp_path / "x.pdf")), None, 10)
    assert caught.value.kind is FailureKind.UNREADABLE
    with pytest.raises(RowFailedError) as caught:
        pdf.render_with_poppler(write_pdf(tmp_path / "y.pdf"), 7, 490, None, 10)
    assert caught.value.kind is FailureKind.RENDER_FAILED


def test_without_poppler_the_words_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RowFailedError, match="not installed"):
        pdf.render_with_poppler(Document("x", str(SAMPLES / "documents" / "letter.pdf")), 1, 490, None, 10)
