from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import PageSettings, Rasterizer, Split
from idefics_cli.documents.page_cache import PageCache
from idefics_cli.documents.pool import PagePool
from idefics_cli.documents.shared_memory import SLOT_BYTES
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.errors import RowFailedError
from idefics_cli.records import Document

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"
TINY = Idefics2ImageProcessor(490, 196)


@pytest.fixture(scope="module")
def pool() -> Iterator[PagePool]:
    with PagePool(PageSettings(workers=2)) as pool:
        yield pool


def sample(name: str) -> Document:
    return Document(name, str(SAMPLES / name))


def test_a_page_is_prepared_once_while_it_is_needed_and_let_go_after(pool: PagePool) -> None:
    cache = PageCache(pool, TINY)
    notice = sample("notice.bmp")
    page_id = cache.request(notice, 1)
    assert cache.request(notice, 1) == page_id
    page = cache.prepared(notice, 1)
    assert cache.prepared(notice, 1) is page
    assert (cache.is_first_use(notice, 1), cache.is_first_use(notice, 1)) == (True, False)
    cache.release(notice, 1)
    assert cache.prepared(notice, 1) is page
    gone = weakref.ref(page.crops[0])
    cache.release(notice, 1)
    del page
    gc.collect()
    assert gone() is None
    assert cache.request(notice, 1) == page_id
    assert cache.is_first_use(notice, 1)


def test_copies_of_a_document_have_equal_page_ids(pool: PagePool, tmp_path: Path) -> None:
    cache = PageCache(pool, TINY)
    (tmp_path / "copy.bin").write_bytes((SAMPLES / "fax.tiff").read_bytes())
    copy = Document("copy", str(tmp_path / "copy.bin"))
    assert cache.request(sample("fax.tiff"), 2) == cache.request(copy, 2)
    assert cache.request(copy, 1) != cache.request(copy, 2)


def test_a_page_prepared_otherwise_has_another_id(pool: PagePool) -> None:
    page = sample("fax.tiff"), 1
    ids = {
        PageCache(pool.with_settings(settings), TINY).request(*page)
        for settings in (PageSettings(), PageSettings(split=Split.NEVER), PageSettings(rasterizer=Rasterizer.POPPLER))
    }
    assert len(ids) == 3


def test_pages_that_nobody_needs_are_kept_within_their_bytes(pool: PagePool) -> None:
    cache = PageCache(pool.with_settings(PageSettings(split=Split.NEVER)), TINY, kept_bytes=1_000_000)
    cost: list[bool] = []
    for name in ("notice.bmp", "notice.bmp", "transparent.png", "fax.tiff", "notice.bmp"):
        document = sample(name)
        cache.request(document, 1)
        assert cache.prepared(document, 1).crops
        cost.append(cache.is_first_use(document, 1))
        cache.release(document, 1)
    assert cost == [True, False, True, True, True]  # two pages of about half a megabyte each fit, three do not


def test_kept_pages_stay_in_their_slots_as_long_as_these_have_room(pool: PagePool) -> None:
    if pool.memory is None:
        pytest.skip("no anonymous memory files here")
    cache = PageCache(pool.with_settings(PageSettings(split=Split.NEVER)), TINY, kept_bytes=2 * SLOT_BYTES)
    slots: list[int | None] = []
    for name in ("notice.bmp", "transparent.png", "fax.tiff", "notice.bmp", "fax.tiff"):
        document = sample(name)
        cache.request(document, 1)
        page = cache.prepared(document, 1)
        assert cache.is_first_use(document, 1) == (len(slots) < 3)
        cache.release(document, 1)
        slots.append(pool.memory.slot_of(page.crops))
        del page
    assert None not in slots[:4]  # each came in one
    assert slots[3] == slots[0]
    assert slots[4] is None  # two stay there, the third was copied


def test_a_page_larger_than_what_is_kept_drives_nothing_out(pool: PagePool) -> None:
    # Five crops of the letter are 2.5 MB, of the fax 2.8 MB.
    cache = PageCache(pool.with_settings(PageSettings(split=Split.ALWAYS)), TINY, kept_bytes=2_600_000)
    cost: list[bool] = []
    for name in ("letter.pdf", "fax.tiff", "letter.pdf", "fax.tiff"):
        document = sample(name)
        cache.request(document, 1)
        assert cache.prepared(document, 1).crops
        cost.append(cache.is_first_use(document, 1))
        cache.release(document, 1)
    assert cost == [True, True, False, True]


def test_documents_are_opened_once(pool: PagePool) -> None:
    cache = PageCache(pool, TINY)
    cache.expect(sample("fax.tiff"))
    assert cache.info(sample("fax.tiff")) is cache.info(sample("fax.tiff"))
    for _ in range(2):
        with pytest.raises(RowFailedError):
            cache.request(Document("gone", "/gone.pdf"), 1)


def test_only_the_latest_documents_are_remembered(pool: PagePool, tmp_path: Path) -> None:
    cache = PageCache(pool, TINY)
    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    documents = [Document(str(number), str(tmp_path / "x.png")) for number in range(513)]
    first, second = cache.info(documents[0]), cache.info(documents[1])
    for document in documents[1:]:
        cache.expect(document)
    assert cache.info(documents[1]) is second
    assert cache.info(documents[0]) is not first


def test_threads_share_it(pool: PagePool) -> None:
    cache = PageCache(pool, TINY)
    names = ["letter.pdf", "notice.bmp", "fax.tiff", "price-list.gif", "small-print.png"]
    firsts, failures = [], []

    def use() -> None:
        try:
            for name in names * 8:
                cache.expect(sample(name))
                cache.request(sample(name), 1)
                cache.prepared(sample(name), 1)
                firsts.append(cache.is_first_use(sample(name), 1))
                cache.release(sample(name), 1)
        except BaseException as error:
            failures.append(error)

    for name in names:
        cache.request(sample(name), 1)
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(firsts) == len(names)


def test_documents_that_came_as_bytes_are_remembered_within_a_limit(pool: PagePool) -> None:
    cache = PageCache(pool, TINY)
    letter = (SAMPLES / "notice.bmp").read_bytes()
    contents = [letter + bytes(8_000_000) + b"%d" % number for number in range(8)]
    before = [sys.getrefcount(contents[number]) for number in range(8)]
    infos = [cache.info(Document(f"{number}", data=content)) for number, content in enumerate(contents)]
    assert len({info.digest for info in infos}) == 8
    gc.collect()
    held = [sys.getrefcount(contents[number]) > before[number] for number in range(8)]
    assert held[-1]
    assert not any(held[:4])
    assert cache.info(Document("0", data=contents[0])).digest == infos[0].digest
