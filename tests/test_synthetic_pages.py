from __future__ import annotations

from pathlib import Path

import pypdfium2

from idefics_cli.diagnostics.synthetic_pages import write_letters


def test_letters_are_pdfs_of_one_page_full_of_text_no_two_alike(tmp_path: Path) -> None:
    texts = []
    for path in write_letters(tmp_path, 3):
        with pypdfium2.PdfDocument(path) as document:
            assert len(document) == 1
            assert document[0].get_size() == (612, 792)
            texts.append(document[0].get_textpage().get_text_range())
    assert len(set(texts)) == 3
    assert all(len(text.split()) == 64 * 12 for text in texts)


def test_letters_go_on_where_the_last_ones_ended(tmp_path: Path) -> None:
    whole = [path.read_bytes() for path in write_letters(tmp_path, 4)]
    (tmp_path / "later").mkdir()
    later = write_letters(tmp_path / "later", 2, first=2)
    assert [path.read_bytes() for path in later] == whole[2:]
    assert later[0].name == "letter-0002.pdf"
