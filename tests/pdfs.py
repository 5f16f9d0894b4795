"""PDFs made for the tests: by reportlab, and by hand where they are to be unusual."""

from __future__ import annotations

import zlib
from pathlib import Path

from reportlab.pdfgen.canvas import Canvas

from idefics_cli.records import Document


def write_pdf(path: Path, *, size: tuple[float, float] = (612, 792), font: float = 12, password: str = "") -> Document:
    canvas = Canvas(str(path), pagesize=size, encrypt=password or None)
    canvas.setFont("Helvetica", font)
    for line in range(10):
        canvas.drawString(40, size[1] - 60 - line * font * 1.5, "The quick brown fox jumps")
    canvas.save()
    return Document(path.name, str(path))


def pdf(objects: list[bytes]) -> bytes:
    body = b"%PDF-1.4\n"
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, table, len(objects) + 1, len(body))
    )


def stream(content: bytes, more: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), more, content)


def one_page(
    box: bytes = b"612 792",
    content: bytes = b"",
    more: bytes = b"",
    objects: tuple[bytes, ...] = (),
    filters: bytes = b"",
) -> bytes:
    return pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 " + box + b"] /Contents 4 0 R " + more + b" >>",
        stream(content, filters),
        *objects,
    ])  # fmt: skip


def no_pages() -> bytes:
    return pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"])


def unnamed_font(text: bytes, font: bytes) -> bytes:
    """A page in a font that is not embedded."""
    return one_page(
        content=b"BT /F 40 Tf 20 700 Td (" + text + b") Tj ET",
        more=b"/Resources << /Font << /F 5 0 R >> >>",
        objects=(b"<< /Type /Font /Subtype /TrueType /BaseFont /" + font + b" >>",),
    )


def bomb(megabytes: int) -> bytes:
    """A content stream of a few kilobytes that unpacks to so many megabytes."""
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(b" " * 1_000_000) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = zlib.compress(b"\x78\xda" + megabyte * megabytes, 9)
    return one_page(content=packed, filters=b"/Filter [/FlateDecode /FlateDecode]")
