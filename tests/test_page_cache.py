from __future__ import annotations

import pytest

from idefics_cli.documents.rasterize import PagePool
from idefics_cli.documents.store import PageStore
from idefics_cli.errors import RowFailedError
from idefics_cli.records import Document
from tests.conftest import SAMPLES, TINY


def sample(name: str) -> Document:
    return Document(name, str(SAMPLES / "documents" / name))


def test_a_page_is_prepared_once_while_it_is_needed_and_let_go_after(pool: PagePool) -> None:
    store = PageStore(pool, TINY)
    notice = sample("notice.bmp")
    first = store.request(notice, 1)
    assert store.request(notice, 1) == first
    assert store.prepared(notice, 1) is store.prepared(notice, 1)
    assert (store.charge(notice, 1), store.charge(notice, 1)) == (True, False)
    store.release(notice, 1)
    assert store.request(notice, 1) == first
    store.release(notice, 1)
    store.release(notice, 1)
    assert not store._pages
    assert store.request(notice, 1) != first


def test_documents_are_opened_once(pool: PagePool) -> None:
    store = PageStore(pool, TINY)
    store.expect(sample("fax.tiff"))
    assert store.info(sample("fax.tiff")).pages == 3
    with pytest.raises(RowFailedError):
        store.info(Document("gone", "/gone.pdf"))
