from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.config import Across, PageSettings, RunSettings, Split
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.errors import InputError
from idefics_cli.pipeline import Progress, check_pages, run
from idefics_cli.records import Document, Job, Question, Row
from tests.conftest import SAMPLES
from tests.fakes import FakeEngine

Png = Callable[..., Path]


def document(path: Path) -> Document:
    return Document(str(path), str(path))


def job(text: str, path: Path, **more: str) -> Job:
    return Job(Question(text, "q:1", **more), document(path))  # type: ignore[arg-type]


def endless(path: Path, taken: list[int]) -> Iterator[Job]:
    """Jobs without end; `taken` tells how many were read."""
    for number in itertools.count():
        taken.append(number)
        yield job(f"q{number}", path)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames.tiff"
    images = [
        Image.effect_noise((300, 400), 5).point([min(255, level // 4 + base) for level in range(256)])
        for base in (10, 190, 90)
    ]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


def test_every_question_leaves_as_one_row_in_order_whatever_the_window(
    pool: PagePool, grey_png: Png, tmp_path: Path
) -> None:
    good = [grey_png(f"{grey}.png", grey) for grey in (40, 80, 120)]
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    jobs = [job(f"q{n}", path) for n, path in enumerate([good[0], tmp_path / "broken.pdf", good[1], good[0], good[2]])]
    jobs.insert(3, Job(Question("q?", "q:9", failure="bad-question: nowhere"), None))
    jobs.append(job("please fail", good[0]))
    found = {}
    for window in (1, 2, 100):
        progress = Progress()
        rows = list(run(jobs, FakeEngine(window=window), pool, RunSettings(), progress=progress))
        assert [row.question for row in rows] == [j.question.text for j in jobs]
        assert (progress.rows, progress.failed) == (7, 3)
        found[window] = [(row.answer, row.status, row.error, row.key) for row in rows]
    assert found[1] == found[2] == found[100]
    statuses = [(row.status, row.error.partition(":")[0]) for row in rows]
    assert statuses == [
        ("ok", ""),
        ("failed", "unreadable"),
        ("ok", ""),
        ("failed", "bad-question"),
        ("ok", ""),
        ("ok", ""),
        ("failed", "model-error"),
    ]
    assert rows[0].answer == "q0 @40"


def test_across_each_best_and_together(pool: PagePool, frames: Path) -> None:
    def rows(across: Across, **settings: object) -> list[Row]:
        return list(run([job("q", frames)], FakeEngine(), pool, RunSettings(across=across, **settings)))  # type: ignore[arg-type]

    assert [row.page for row in rows(Across.EACH)] == ["1", "2", "3"]
    (best,) = rows(Across.BEST)
    assert best.page == "2"
    assert best.confidence is not None
    assert best.confidence > 0.7
    (together,) = rows(Across.TOGETHER)
    assert together.page == "1-3"
    assert together.answer.count("+") == 2
    assert [row.page for row in rows(Across.EACH, page_selection="-1,1")] == ["3", "1"]


def test_a_page_is_encoded_once_for_its_questions_and_its_cost_is_shared(pool: PagePool, frames: Path) -> None:
    engine = FakeEngine(window=24)  # the first window takes an eighth
    rows = list(run([job(f"q{n}", frames, page="2") for n in range(7)], engine, pool, RunSettings()))
    assert len({request.page_ids for request in engine.asked}) == 1
    charged = [row.raster_ms for row in rows]
    assert charged[0] == charged[1] == charged[2]
    assert charged[0]
    assert charged[3:] == [0.0] * 4  # paid for by the window that asked first


def test_an_unknown_page_is_an_input_error_for_a_file_and_a_row_for_a_stream(pool: PagePool, frames: Path) -> None:
    asked = [job("q", frames, page="9"), job("q", frames, page="1")]
    with pytest.raises(InputError, match=r"q:1: .*frames\.tiff: no-such-page: page 9 .* 3 pages"):
        check_pages(asked, pool)
    rows = list(run(asked, FakeEngine(), pool, RunSettings()))
    assert [(row.status, row.page) for row in rows] == [("failed", "9"), ("ok", "1")]
    assert rows[0].error.startswith("no-such-page")


def test_keys_go_by_content_page_question_and_settings(pool: PagePool, grey_png: Png, tmp_path: Path) -> None:
    path = grey_png("a.png", 50)

    def key(text: str = "q", settings: RunSettings | None = None) -> str:
        (row,) = run([job(text, path)], FakeEngine(), pool, settings or RunSettings())
        return row.key

    first = key()
    assert key() == first
    assert key("other") != first
    assert key(settings=RunSettings(across=Across.EACH)) != first
    grey_png("a.png", 51)
    assert key() != first


def test_rows_that_are_done_are_passed_over_and_a_limit_holds(pool: PagePool, grey_png: Png) -> None:
    path = grey_png("a.png", 50)
    jobs = [job(f"q{n}", path) for n in range(5)]
    rows = list(run(jobs, FakeEngine(), pool, RunSettings()))
    progress, engine = Progress(), FakeEngine()
    again = list(run(jobs, engine, pool, RunSettings(), done={row.key for row in rows[:3]}, progress=progress))
    assert [row.question for row in again] == ["q3", "q4"]
    assert progress.skipped == 3
    assert len(list(run(jobs, FakeEngine(), pool, RunSettings(limit=2)))) == 2


def test_a_stream_is_answered_without_waiting_for_more(pool: PagePool, grey_png: Png) -> None:
    taken: list[int] = []
    rows = run(endless(grey_png("a.png", 50), taken), FakeEngine(window=50), pool, RunSettings(), ready=lambda: False)
    assert next(rows).question == "q0"
    assert len(taken) <= 2
    rows.close()


def test_jobs_are_read_little_further_than_a_window(pool: PagePool, grey_png: Png) -> None:
    taken: list[int] = []
    rows = run(endless(grey_png("a.png", 50), taken), FakeEngine(window=4), pool, RunSettings())
    for _ in range(20):
        next(rows)
    assert len(taken) <= 20 + 3 * 4 + pool.workers + 2
    rows.close()


def test_latency_runs_from_taking_the_request(pool: PagePool) -> None:
    started = time.perf_counter()
    (row,) = run([job("q", SAMPLES / "documents" / "notice.bmp")], FakeEngine(), pool, RunSettings())
    assert row.latency_ms is not None
    assert 0 < row.latency_ms <= (time.perf_counter() - started) * 1e3


@pytest.mark.parametrize("across", list(Across))
def test_a_document_of_many_pages_is_asked_in_parts_and_leaves_as_it_should(
    pool: PagePool, tmp_path: Path, across: Across
) -> None:
    frames = [Image.new("RGB", (20, 20), (5 * n, 5 * n, 5 * n)) for n in range(30)]
    frames[0].save(tmp_path / "many.tiff", save_all=True, append_images=frames[1:])
    engine = FakeEngine(window=8)
    settings = RunSettings(across=across, pages=PageSettings(split=Split.NEVER))
    asked = [job("one", tmp_path / "many.tiff"), job("two", tmp_path / "many.tiff")]
    rows = list(run(asked, engine, pool, settings))
    assert max(engine.calls) <= 8
    if across is Across.EACH:
        assert [(row.question, row.page) for row in rows] == [(q, str(p)) for q in ("one", "two") for p in range(1, 31)]
    elif across is Across.BEST:
        assert [(row.question, row.page, row.crops) for row in rows] == [("one", "30", 1), ("two", "30", 1)]
        assert len(engine.asked) == 60
    else:
        assert [(row.page, row.crops) for row in rows] == [("1-30", 30)] * 2
        assert len(engine.asked) == 2
