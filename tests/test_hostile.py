"""Documents that nobody would send, and samples with damaged bytes: one row each, and the rest goes on."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from idefics_cli.config import Across, PageSettings, RunSettings
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.errors import FailureKind
from idefics_cli.pipeline import run
from idefics_cli.records import Answer, Document, Job, Question, Request, Row
from tests.conftest import SAMPLES
from tests.fakes import FakeEngine
from tests.test_pdf import write_pdf

KINDS = set(FailureKind)
MEMORY = 2_000_000_000


class Watch:
    """The largest memory of any child process, looked at ten times a second."""

    def __init__(self) -> None:
        self.largest = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        here = psutil.Process()
        while not self._over.wait(0.1):
            for process in [here, *here.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.largest = max(self.largest, memory.rss - memory.shared)


class Forgetful(FakeEngine):
    """Keeps nothing of what it was asked: pixels of thousands of pages are not to be held."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        yield from super().answer(requests)
        self.asked.clear()


def answered(paths: list[Path], settings: PageSettings) -> Iterator[Row]:
    jobs = [Job(Question("q", path.name), Document(str(path), str(path))) for path in paths]
    with PagePool(settings) as pool:
        yield from run(jobs, Forgetful(window=16), pool, RunSettings(pages=settings, across=Across.BEST))


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


def one_page(box: bytes, content: bytes = b"", more: bytes = b"", objects: tuple[bytes, ...] = ()) -> bytes:
    return pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 " + box + b"] /Contents 4 0 R " + more + b" >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        *objects,
    ])  # fmt: skip


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the kind of failure that they must end with; `ok` for what can be read all the same."""
    folder = tmp_path_factory.mktemp("hostile")
    made: dict[str, Path] = {}

    def put(name: str, data: bytes) -> Path:
        made[name] = folder / name
        made[name].write_bytes(data)
        return made[name]

    put("no-pages.pdf", pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]))
    put("zero-size.pdf", one_page(b"0 0"))
    put("vast.pdf", one_page(b"2147483648 2147483648"))
    put("nested.pdf", one_page(
        b"612 792", b"/F Do", b"/Resources << /XObject << /F 5 0 R >> >>",
        tuple(
            b"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /F %d 0 R >> >> "
            b"/Length 11 >>\nstream\n/F Do /F Do\nendstream" % (number if number < 30 else 5)
            for number in range(6, 31)
        ),
    ))  # fmt: skip
    write_pdf(folder / "locked.pdf", password="x")
    made["locked.pdf"] = folder / "locked.pdf"
    rows = zlib.compress(b"\0" * (30_000 * 3750 + 1))
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    put(
        "bomb.png",
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""),
    )
    jpeg = folder / "whole.jpg"
    Image.effect_noise((900, 900), 60).convert("RGB").save(jpeg)
    put("cut.jpg", jpeg.read_bytes()[:40_000])
    jpeg.unlink()
    Image.new("I;16", (300, 200), 40_000).save(folder / "deep.png")
    Image.new("CMYK", (300, 200), (10, 20, 30, 40)).save(folder / "ink.jpg")
    Image.new("RGB", (300, 200), "beige").save(folder / "really.png")
    (folder / "really.png").rename(folder / "wrong.pdf")
    made |= {name: folder / name for name in ("deep.png", "ink.jpg", "wrong.pdf")}
    put("empty.pdf", b"")
    (folder / "folder.pdf").mkdir()
    os.mkfifo(folder / "pipe.pdf")
    made |= {name: folder / name for name in ("folder.pdf", "pipe.pdf")}
    put("forbidden.png", b"x").chmod(0)
    put("good.bmp", (SAMPLES / "documents" / "notice.bmp").read_bytes())
    return made


def test_hostile_documents_each_get_one_row_of_their_kind(hostile: dict[str, Path]) -> None:
    started = time.monotonic()
    with Watch() as watch:
        rows = list(answered(list(hostile.values()), PageSettings(workers=2, page_timeout=20)))
    assert time.monotonic() - started < 120
    assert watch.largest < MEMORY
    found = {Path(row.document).name: row.error.partition(":")[0] or "ok" for row in rows}
    assert len(rows) == len(found) == len(hostile)
    expected = {
        "no-pages.pdf": {"unreadable"}, "zero-size.pdf": {"render-failed", "ok"}, "vast.pdf": {"render-failed", "ok"},
        "nested.pdf": {"render-failed", "timed-out", "ok"}, "locked.pdf": {"encrypted"}, "bomb.png": {"too-large"},
        "cut.jpg": {"unreadable"}, "deep.png": {"ok"}, "ink.jpg": {"ok"}, "wrong.pdf": {"ok"},
        "empty.pdf": {"unreadable"}, "folder.pdf": {"unreadable"}, "pipe.pdf": {"unreadable"},
        # root may read everything
        "forbidden.png": {"unreadable"} if os.geteuid() else {"unsupported"}, "good.bmp": {"ok"},
    }  # fmt: skip
    assert {name: kind for name, kind in found.items() if kind not in expected[name]} == {}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut or double some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16))):
        kind, at = rng.choice(("flip", "flip", "cut", "double")), rng.randrange(len(changed))
        size = rng.choice((1, 8, 200, 5000))
        if kind == "flip":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "cut" and len(changed) > size + 16:
            del changed[at : at + size]
        else:
            changed[at:at] = changed[at : at + size]
    return bytes(changed)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_samples_with_damaged_bytes_each_get_one_row(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    samples = sorted(path for path in (SAMPLES / "documents").rglob("*.*") if path.stat().st_size < 2_000_000)
    paths = []
    for number in range(count):
        sample = samples[number % len(samples)]
        paths.append(tmp_path / f"{number:04}{sample.suffix}")
        paths[-1].write_bytes(mutated(sample.read_bytes(), rng))
    with Watch() as watch:
        rows = list(answered(paths, PageSettings(workers=2, page_timeout=20)))
    assert [Path(row.document) for row in rows] == paths
    assert {row.error.partition(":")[0] for row in rows if row.status == "failed"} <= KINDS
    assert 0 < sum(row.status == "ok" for row in rows) < count
    assert watch.largest < MEMORY
    print(f"{sum(row.status == 'failed' for row in rows)} of {count} failed; largest {watch.largest / 1e6:.0f} MB")
