"""Documents that nobody would send, and samples with damaged bytes: each fails as itself, and the rest goes on."""

from __future__ import annotations

import csv
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from PIL import Image

from idefics_cli.config import PageSettings
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document, PreparedPage
from tests.pdfs import bomb, no_pages, one_page, pdf, write_pdf

SAMPLES = Path(__file__).parent.parent / "samples" / "documents"
MEMORY = 2_000_000_000
TINY = Idefics2ImageProcessor(490, 196)


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
            for process in here.children(recursive=True):
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.largest = max(self.largest, memory.rss - memory.shared)


def kinds(paths: Sequence[Path]) -> dict[str, str]:
    """What becomes of the first page of each document: the kind of its failure, or ok."""

    def kind(path: Path) -> str:
        try:
            document = Document(str(path), str(path))
            info = result_of(pool.open(document), DocumentInfo)
            assert result_of(pool.prepare(document, info, 1, TINY), PreparedPage).crops
        except RowFailedError as error:
            assert error.failure.detail
            return error.failure.kind.value
        return "ok"

    found: dict[str, str] = {}
    with PagePool(PageSettings(workers=2, page_timeout=20)) as pool:
        threads = [
            threading.Thread(target=lambda part: found.update((path.name, kind(path)) for path in part), args=(part,))
            for part in (paths[::2], paths[1::2])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("hostile")

    def put(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    put("no-pages.pdf", no_pages())
    put("zero-size.pdf", one_page(b"0 0"))
    put("vast.pdf", one_page(b"2147483648 2147483648"))
    put("nested.pdf", one_page(
        content=b"/F Do", more=b"/Resources << /XObject << /F 5 0 R >> >>",
        objects=tuple(
            b"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /F %d 0 R >> >> "
            b"/Length 11 >>\nstream\n/F Do /F Do\nendstream" % (number if number < 30 else 5)
            for number in range(6, 31)
        ),
    ))  # fmt: skip
    put("missing-page.pdf", pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [9 0 R] /Count 1 >>"
    ]))  # fmt: skip
    put("bomb.pdf", bomb(2500))
    write_pdf(folder / "locked.pdf", password="x")
    rows = zlib.compress(b"\0" * (30_000 * 3750 + 1))
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    put(
        "bomb.png",
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""),
    )
    jpeg = folder / "cut.jpg"
    Image.effect_noise((900, 900), 60).convert("RGB").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:40_000])
    Image.new("I;16", (300, 200), 40_000).save(folder / "deep.png")
    Image.new("CMYK", (300, 200), (10, 20, 30, 40)).save(folder / "ink.jpg")
    Image.new("RGB", (300, 200), "beige").save(folder / "really.png")
    (folder / "really.png").rename(folder / "wrong.pdf")
    put("empty.pdf", b"")
    (folder / "folder.pdf").mkdir()
    os.mkfifo(folder / "pipe.pdf")
    put("forbidden.png", b"x").chmod(0)
    put("good.bmp", (SAMPLES / "notice.bmp").read_bytes())
    return sorted(folder.iterdir())


EXPECTED = {
    "no-pages.pdf": {"unreadable"}, "zero-size.pdf": {"render-failed", "ok"}, "vast.pdf": {"render-failed", "ok"},
    "nested.pdf": {"render-failed", "timed-out", "too-large", "ok"}, "missing-page.pdf": {"unreadable", "render-failed"},
    "locked.pdf": {"encrypted"}, "bomb.png": {"too-large"}, "bomb.pdf": {"too-large"},
    "cut.jpg": {"unreadable"}, "deep.png": {"ok"}, "ink.jpg": {"ok"}, "wrong.pdf": {"ok"},
    "empty.pdf": {"unreadable"}, "folder.pdf": {"unreadable"}, "pipe.pdf": {"unreadable"},
    # root may read everything
    "forbidden.png": {"unreadable"} if os.geteuid() else {"unsupported"}, "good.bmp": {"ok"},
}  # fmt: skip


def test_hostile_documents_each_fail_as_what_they_are(hostile: list[Path]) -> None:
    started = time.monotonic()
    with Watch() as watch:
        found = kinds(hostile)
    assert time.monotonic() - started < 120
    assert watch.largest < MEMORY
    assert len(found) == len(hostile)
    assert {name: kind for name, kind in found.items() if kind not in EXPECTED[name]} == {}


def test_a_run_over_hostile_documents_has_a_row_of_its_kind_for_each(hostile: list[Path], tmp_path: Path) -> None:
    files = [path for path in hostile if not path.is_dir()]
    assert len(files) == 16
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "idefics_cli", "run", str(hostile[0].parent), "--ask", "Who?", "-o", str(output)]
    done = subprocess.run(
        [*command, "--model", "tiny", "--page-timeout", "20"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["document"] for row in rows] == [str(path) for path in files]
    kinds = {Path(row["document"]).name: row["error"].partition(":")[0] or row["status"] for row in rows}
    assert {name: kind for name, kind in kinds.items() if kind not in EXPECTED[name]} == {}


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
def test_samples_with_damaged_bytes_each_end_as_a_page_or_a_failure(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    samples = sorted(path for path in SAMPLES.rglob("*.*") if path.stat().st_size < 2_000_000)
    paths = []
    for number in range(count):
        sample = samples[number % len(samples)]
        paths.append(tmp_path / f"{number:04}{sample.suffix}")
        paths[-1].write_bytes(mutated(sample.read_bytes(), rng))
    with Watch() as watch:
        found = kinds(paths)
    assert sorted(found) == [path.name for path in paths]
    assert set(found.values()) <= {"ok", *FailureKind}
    assert 0 < sum(kind == "ok" for kind in found.values()) < count
    assert watch.largest < MEMORY
