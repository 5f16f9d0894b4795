from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.documents.document_cache import DocumentCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document
from tests.conftest import SAMPLES


def test_a_document_is_opened_once_for_all_who_ask(pool: PagePool, tmp_path: Path) -> None:
    cache = DocumentCache(pool)
    copy = tmp_path / "copy.tiff"
    copy.write_bytes((SAMPLES / "documents" / "fax.tiff").read_bytes())
    document = Document("copy", str(copy))
    cache.expect(document)
    info = cache.info(document)
    assert info.pages == 3
    copy.unlink()
    assert cache.info(document) is info
    assert cache.info(Document("fax", str(SAMPLES / "documents" / "fax.tiff"))).digest == info.digest
    with pytest.raises(RowFailedError) as failed:
        cache.info(Document("another name", str(copy)))
    assert failed.value.failure.kind is FailureKind.UNREADABLE
