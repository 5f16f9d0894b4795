from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from idefics_cli.config import PageSettings, Rasterizer
from idefics_cli.documents.page import DocumentInfo, ImageProcessor
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.errors import Failure, FailureKind, RowFailedError
from idefics_cli.records import Crop, Document, PreparedPage
from tests.pdfs import bomb

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples" / "documents"
TINY = Idefics2ImageProcessor(490, 196)


@dataclass(frozen=True)
class Doing(Idefics2ImageProcessor):
    """Does something in the page process before it makes crops; a file says how often it has."""

    longest_edge: int = 490
    shortest_edge: int = 196
    what: str = ""
    count: str = ""

    def crops(self, page: Image.Image, *, split: bool) -> tuple[Crop, ...]:
        with open(self.count, "a") as stream:
            stream.write("x")
        times = os.path.getsize(self.count)
        if self.what == "die" or (self.what == "die once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "hang":
            time.sleep(600)
        if self.what == "break":
            raise RecursionError("in a new way")
        if self.what == "large":
            return (np.full((3000, 3000, 3), 7, np.uint8),)
        return super().crops(page, split=split)


@pytest.fixture
def doing(tmp_path: Path) -> Callable[[str], Doing]:
    return lambda what: Doing(what=what, count=str(tmp_path / "count"))


@pytest.fixture(scope="module")
def pool() -> Iterator[PagePool]:
    with PagePool(PageSettings(workers=2, page_timeout=2)) as pool:
        yield pool


def sample(name: str) -> Document:
    return Document(name, str(SAMPLES / name))


def prepared(pool: PagePool, document: Document, page: int = 1, processor: ImageProcessor = TINY) -> PreparedPage:
    info = result_of(pool.open(document), DocumentInfo)
    return result_of(pool.prepare(document, info, page, processor), PreparedPage)


def failure_of(pool: PagePool, document: Document, processor: ImageProcessor = TINY) -> Failure:
    with pytest.raises(RowFailedError) as caught:
        prepared(pool, document, processor=processor)
    return caught.value.failure


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if not has_ended(process.pid)]


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.02)
    return is_so()


def test_processes_are_started_when_they_are_needed_and_ended_with_the_pool() -> None:
    before = len(children())
    with PagePool(PageSettings(workers=2)) as pool:
        assert len(children()) == before
        assert result_of(pool.open(sample("invoice.pdf")), DocumentInfo).pages == 3
        assert len(children()) == before + 1
        for number in range(1, 4):
            assert len(prepared(pool, sample("invoice.pdf"), number).crops) in (1, 5)
    assert len(children()) == before


def test_one_pool_serves_several_runs_and_threads(pool: PagePool) -> None:
    pages: list[PreparedPage] = []
    for _ in range(2):
        threads = [
            threading.Thread(target=lambda: pages.append(prepared(pool, sample("notice.bmp")))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(pages) == 8
    assert all(np.array_equal(page.crops[-1], pages[0].crops[-1]) for page in pages)


MODULES = """
import sys
import numpy as np
class Modules:
    longest_edge = 490
    def render_edge(self, *, split):
        return 490
    def columns(self, width, height, *, split):
        return 0
    def crops(self, page, *, split):
        return (np.frombuffer(" ".join(sys.modules).encode(), np.uint8),)
"""


def test_page_processes_import_only_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "telling.py").write_text(MODULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    with PagePool(PageSettings(workers=1)) as pool:
        assert prepared(pool, sample("notice.bmp")).crops
        (names,) = prepared(pool, sample("notice.bmp"), processor=importlib.import_module("telling").Modules()).crops
    modules = {name.partition(".")[0] for name in names.tobytes().decode().split()}
    assert modules.isdisjoint({"torch", "transformers", "pandas", "typer", "rich", "pytest", "reportlab"})
    assert "numpy" in modules


def test_crops_beyond_the_shared_memory_come_through_the_pipe(pool: PagePool, doing: Callable[[str], Doing]) -> None:
    (crop,) = prepared(pool, sample("notice.bmp"), processor=doing("large")).crops
    assert crop.shape == (3000, 3000, 3)
    assert (crop == 7).all()


def test_a_page_whose_process_is_killed_is_prepared_by_another(pool: PagePool, doing: Callable[[str], Doing]) -> None:
    assert prepared(pool, sample("notice.bmp"), processor=doing("die once")).crops


def test_a_page_that_kills_its_processes_loses_only_itself(
    pool: PagePool, doing: Callable[[str], Doing], tmp_path: Path
) -> None:
    failure = failure_of(pool, sample("notice.bmp"), doing("die"))
    assert failure == Failure(FailureKind.RENDER_FAILED, "the page's process died (SIGKILL)")
    assert (tmp_path / "count").read_text() == "xx"
    assert prepared(pool, sample("notice.bmp")).crops


def test_a_page_that_hangs_is_ended_at_the_time_limit(
    pool: PagePool, doing: Callable[[str], Doing], tmp_path: Path
) -> None:
    failure = failure_of(pool, sample("notice.bmp"), doing("hang"))
    assert failure.kind is FailureKind.TIMED_OUT
    assert "--page-timeout 2;" in failure.detail
    assert (tmp_path / "count").read_text() == "x"
    assert prepared(pool, sample("notice.bmp")).crops


def test_a_document_whose_opening_hangs_has_a_time_limit_of_its_own() -> None:
    before = {process.pid for process in children()}
    with PagePool(PageSettings(workers=1, page_timeout=600), open_timeout=2) as pool:
        assert prepared(pool, sample("notice.bmp")).crops
        (idle,) = [process for process in children() if process.pid not in before]
        idle.suspend()
        with pytest.raises(RowFailedError) as caught:
            result_of(pool.open(sample("invoice.pdf")), DocumentInfo)
        words = "opening the document took longer than 2 seconds; its process was ended"
        assert caught.value.failure == Failure(FailureKind.TIMED_OUT, words)
        assert result_of(pool.open(sample("invoice.pdf")), DocumentInfo).pages == 3


def test_a_page_that_breaks_a_library_in_a_new_way_has_a_failure(pool: PagePool, doing: Callable[[str], Doing]) -> None:
    failure = failure_of(pool, sample("notice.bmp"), doing("break"))
    assert failure == Failure(FailureKind.RENDER_FAILED, "RecursionError: in a new way")


def test_pages_go_on_coming_while_idle_and_busy_processes_are_killed() -> None:
    rng = random.Random(1)
    names = ["notice.bmp", "letter.pdf", "dense-invoice.pdf"]
    rounds = killed = 0
    over = threading.Event()

    def kill() -> None:
        nonlocal killed
        while not over.is_set():
            before = rounds
            for process in rng.sample(children(), k=min(1, len(children()))):
                process.kill()
                killed += 1
            # A page whose second process is killed too would be lost.
            while rounds < before + 2 and not over.wait(0.01):
                pass
            over.wait(rng.uniform(0, 0.2))

    with PagePool(PageSettings(workers=2)) as pool:
        assert prepared(pool, sample("notice.bmp")).crops
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            while killed < 10:
                infos = [result_of(pool.open(sample(name)), DocumentInfo) for name in names]
                pages = [pool.prepare(sample(name), info, 1, TINY) for name, info in zip(names, infos, strict=True)]
                assert all(result_of(page, PreparedPage).crops for page in pages)
                rounds += 1
                time.sleep(rng.uniform(0, 0.1))
        finally:
            over.set()
            thread.join()
        for process in children():  # all of them, idle
            process.kill()
        assert prepared(pool, sample("notice.bmp")).crops


def test_what_a_closed_pool_was_asked_for_is_cancelled(doing: Callable[[str], Doing], tmp_path: Path) -> None:
    with PagePool(PageSettings(workers=1)) as pool:
        info = result_of(pool.open(sample("notice.bmp")), DocumentInfo)
        futures = [pool.prepare(sample("notice.bmp"), info, 1, doing("hang")) for _ in range(3)]
        assert wait_until((tmp_path / "count").exists)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    for future in futures:
        with pytest.raises(CancelledError):
            result_of(future, PreparedPage)


def test_what_needs_more_memory_than_a_process_has_is_too_large(tmp_path: Path) -> None:
    Image.new("1", (22_000, 22_000)).save(tmp_path / "bomb.png")  # 1.9 GB in RGB, 60 kB on disk
    (tmp_path / "bomb.pdf").write_bytes(bomb(2500))
    with PagePool(PageSettings(workers=1, max_pixels=2_000_000_000)) as pool:
        for name, processor in (("bomb.png", Idefics2ImageProcessor(30_000, 196)), ("bomb.pdf", TINY)):
            failure = failure_of(pool, Document(name, str(tmp_path / name)), processor)
            assert failure == Failure(FailureKind.TOO_LARGE, "it needs more memory than a page process may use (2 GB)")
        assert prepared(pool, sample("notice.bmp")).crops


def test_what_was_kept_for_a_document_without_a_file_is_deleted_with_it() -> None:
    with PagePool(PageSettings(workers=1)) as pool:
        document = Document("data:...", data=(SAMPLES / "letter.pdf").read_bytes())
        info = result_of(pool.open(document), DocumentInfo)
        other = result_of(pool.open(document), DocumentInfo)
        path = Path(info.path)
        assert result_of(pool.prepare(document, info, 1, TINY), PreparedPage).crops
        del info
        assert wait_until(lambda: not path.exists())
        assert Path(other.path).exists()
        failure = failure_of(pool, Document("x", url="http://127.0.0.1/x.pdf"))
        assert "not on the public internet" in failure.detail
    assert not Path(other.path).parent.exists()


def hanging_poppler(folder: Path) -> str:
    (folder / "pdftoppm").write_text(f"#!/bin/sh\necho $$ > {folder}/pid\nexec sleep 600\n")
    (folder / "pdfinfo").write_text("#!/bin/sh\necho Pages: 3\n")
    for name in ("pdftoppm", "pdfinfo"):
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.parametrize("ended_by", ["time limit", "end of the pool", "death of its page process"])
def test_a_rasterizer_that_hangs_is_ended_with_its_page_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    monkeypatch.setenv("PATH", hanging_poppler(tmp_path))
    before = {process.pid for process in children()}
    seconds = 1.0 if ended_by == "time limit" else 60.0
    with PagePool(PageSettings(workers=1, rasterizer=Rasterizer.POPPLER, page_timeout=seconds)) as pool:
        info = result_of(pool.open(sample("letter.pdf")), DocumentInfo)
        future = pool.prepare(sample("letter.pdf"), info, 1, TINY)
        assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        rasterizer = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(rasterizer)
        if ended_by == "time limit":
            with pytest.raises(RowFailedError, match="--page-timeout"):
                result_of(future, PreparedPage)
        elif ended_by.startswith("death"):
            (page_process,) = [process for process in children() if process.pid not in before]
            page_process.kill()
            assert wait_until(lambda: has_ended(rasterizer))
    assert wait_until(lambda: has_ended(rasterizer))


def has_ended(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


PARENT = """
import sys, time
from idefics_cli.config import PageSettings, Rasterizer
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.records import Document
# Without a main guard: page processes do not run the script again.
pool = PagePool(PageSettings(workers=2, rasterizer=Rasterizer.POPPLER))
document = Document("x", sys.argv[1])
infos = [result_of(pool.open(document), DocumentInfo) for _ in range(2)]
kept = result_of(pool.open(Document("data", data=open(sys.argv[1], "rb").read())), DocumentInfo)
pool.prepare(document, infos[0], 1, Idefics2ImageProcessor(490, 196))
print(kept.path, flush=True)
time.sleep(600)
"""


def test_page_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "script.py"), str(SAMPLES / "letter.pdf")]
    environment = {**os.environ, "PATH": hanging_poppler(tmp_path), "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout
    kept = Path(parent.stdout.readline().strip())
    assert kept.is_file()
    assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) >= 2  # a page process, and the rasterizer that it waits for
    parent.kill()
    parent.wait()
    assert wait_until(lambda: all(has_ended(process.pid) for process in below))
    assert wait_until(lambda: not kept.parent.exists())
    parent.stdout.close()


KILLED = """
import os, signal, sys
from idefics_cli.config import PageSettings
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.records import Document

pool = PagePool(PageSettings(workers=1))
for path in sys.argv[1:]:
    result_of(pool.open(Document("sample", path)), DocumentInfo)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("documents", [[], [str(SAMPLES / "letter.pdf")]], ids=["idle", "used"])
def test_a_pool_that_is_killed_leaves_no_folder_behind(documents: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *documents], env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert wait_until(lambda: not list(tmp_path.iterdir()))
