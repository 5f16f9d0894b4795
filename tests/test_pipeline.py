from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.config import Across, PageSettings, QuestionSettings, RunSettings, Split
from idefics_cli.documents.pool import PagePool
from idefics_cli.errors import Failure, FailureKind, InputError, ModelError
from idefics_cli.pipeline import Progress, run
from idefics_cli.records import Answer, Document, Job, Question, Request, Row
from tests.fakes import FakeEngine

Png = Callable[..., Path]


def job(text: str, path: Path, **more: Any) -> Job:
    return Job(Question(text, "q:1", **more), Document(str(path), str(path)))


def settings(**pages: Any) -> RunSettings:
    return RunSettings(pages=PageSettings(**({"split": Split.NEVER} | pages)))


def endless(path: Path, taken: list[int]) -> Iterator[Job]:
    """Jobs without end; `taken` tells how many were read."""
    for number in itertools.count():
        taken.append(number)
        yield job(f"q{number}", path)


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stage_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames.tiff"
    images = [
        Image.effect_noise((300, 400), 5).point([min(255, level // 4 + base) for level in range(256)])
        for base in (10, 190, 90)
    ]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


def many_pages(path: Path, count: int) -> Path:
    frames = [Image.effect_noise((20, 20), 3).point([8 * n] * 256) for n in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


class Scripted(FakeEngine):
    """Answers what is asked, when it is let."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.futures: dict[str, Future[Answer]] = {}

    def submit(self, request: Request) -> Future[Answer]:
        self.asked.append((request.question, request.page_ids))
        return self.futures.setdefault(request.question, Future())


@pytest.mark.parametrize("capacity", [1, 2, 100])
def test_every_question_leaves_as_one_row_in_order(
    capacity: int, pool: PagePool, grey_png: Png, tmp_path: Path
) -> None:
    good = [grey_png(f"{grey}.png", grey) for grey in (40, 80, 120)]
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    jobs = [job(f"q{n}", path) for n, path in enumerate([good[0], tmp_path / "broken.pdf", good[1], good[0], good[2]])]
    jobs.insert(3, Job(Question("q?", "q:9", failure=Failure(FailureKind.BAD_QUESTION, "nowhere")), None))
    jobs.append(job("please fail", good[0]))
    progress = Progress()
    rows = list(run(jobs, FakeEngine(capacity=capacity), pool, settings(), progress=progress))
    assert [row.question for row in rows] == [j.question.text for j in jobs]
    assert (progress.rows, progress.failed, progress.split_pages) == (7, 3, 0)
    assert 3 <= progress.pages <= 5  # a page is rendered again where nothing asked for it in time
    assert [(row.answer, row.status, row.error.partition(":")[0]) for row in rows] == [
        ("q0 @40", "ok", ""),
        ("", "failed", "unreadable"),
        ("q2 @80", "ok", ""),
        ("", "failed", "bad-question"),
        ("q3 @40", "ok", ""),
        ("q4 @120", "ok", ""),
        ("", "failed", "model-error"),
    ]


def test_rows_leave_in_order_though_answers_do_not_come_so(pool: PagePool, grey_png: Png) -> None:
    engine, path = Scripted(capacity=10), grey_png("a.png", 50)
    rows: list[Row] = []
    stream = run([job(f"q{n}", path) for n in range(4)], engine, pool, settings())
    reader = threading.Thread(target=lambda: rows.extend(stream))
    reader.start()
    wait_until(lambda: len(engine.futures) == 4)
    for question in ("q3", "q1", "q2"):
        engine.futures[question].set_result(Answer("yes"))
    time.sleep(0.1)
    assert rows == []
    engine.futures["q0"].set_result(Answer("yes"))
    reader.join(10)
    assert [row.question for row in rows] == ["q0", "q1", "q2", "q3"]


def test_across_each_best_and_together(pool: PagePool, frames: Path) -> None:
    def rows(across: Across, **pages: Any) -> list[Row]:
        return list(run([job("q", frames)], FakeEngine(), pool, settings(across=across, **pages)))

    assert [row.page for row in rows(Across.EACH)] == ["1", "2", "3"]
    (best,) = rows(Across.BEST)
    assert best.page == "2"
    (together,) = rows(Across.TOGETHER)
    assert together.page == "1-3"
    assert together.answer.count("+") == 2
    assert [row.page for row in rows(Across.EACH, selection="-1,1")] == ["3", "1"]
    assert len({row.key for row in [*rows(Across.EACH), best]}) == 4


def test_an_abstention_of_another_page_does_not_win(pool: PagePool, frames: Path) -> None:
    class Abstaining(FakeEngine):
        def answer(self, request: Request) -> Answer:
            found = super().answer(request)
            is_bright = found.mean_logprob > -0.5
            return dataclasses.replace(found, text="Not found.", mean_logprob=0.0) if is_bright else found

    (row,) = run([job("q", frames)], Abstaining(), pool, settings())
    assert row.page == "3"


@pytest.mark.parametrize("across", list(Across))
def test_a_document_of_many_pages_goes_through_an_engine_for_few(
    pool: PagePool, tmp_path: Path, across: Across
) -> None:
    path = many_pages(tmp_path / "many.tiff", 30)
    engine = FakeEngine(capacity=3)
    rows = list(run([job("one", path), job("two", path)], engine, pool, settings(across=across)))
    if across is Across.EACH:
        assert [(row.question, row.page) for row in rows] == [(q, str(p)) for q in ("one", "two") for p in range(1, 31)]
    elif across is Across.BEST:
        assert [(row.question, row.page, row.crops) for row in rows] == [("one", "30", 1), ("two", "30", 1)]
        assert len(engine.asked) == 60
    else:
        assert [(row.page, row.crops) for row in rows] == [("1-30", 30)] * 2
        assert len(engine.asked) == 2


def test_the_cost_of_a_page_is_borne_once_and_its_id_is_its_content(
    pool: PagePool, frames: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.tiff"
    copy.write_bytes(frames.read_bytes())
    engine = FakeEngine()
    jobs = [job(f"q{n}", frames, page="2") for n in range(3)] + [job("q", copy, page="2"), job("q", frames, page="1")]
    rows = list(run(jobs, engine, pool, settings()))
    assert [page_ids for _, page_ids in engine.asked[:4]] == [engine.asked[0][1]] * 4
    assert engine.asked[4][1] != engine.asked[0][1]
    assert rows[0].prepare_ms
    assert [row.prepare_ms for row in rows[1:3]] == [0.0, 0.0]


def test_a_page_that_is_not_there_is_a_failed_row(pool: PagePool, frames: Path) -> None:
    asked = [job("q", frames, page="9"), job("q", frames, page="1")]
    rows = list(run(asked, FakeEngine(), pool, settings()))
    assert [(row.status, row.page, row.error.partition(":")[0]) for row in rows] == [
        ("failed", "9", "no-such-page"),
        ("ok", "1", ""),
    ]


def test_one_bad_page_fails_what_reads_it_and_nothing_else(pool: PagePool, tmp_path: Path) -> None:
    path = tmp_path / "two.tiff"
    small, large = Image.new("L", (60, 60), 90), Image.effect_noise((3000, 3000), 30)
    small.save(path, save_all=True, append_images=[large])

    def rows(across: Across) -> list[Row]:
        limited = settings(across=across, max_pixels=1_000_000)
        with PagePool(limited.pages) as limiting:
            return list(run([job("q", path)], FakeEngine(), limiting, limited))

    assert [row.error.partition(":")[0] for row in rows(Across.EACH)] == ["", "too-large"]
    (best,) = rows(Across.BEST)
    assert (best.page, best.status) == ("1", "ok")
    assert "1 of 2 pages failed: too-large: page 2: " in best.warning
    (together,) = rows(Across.TOGETHER)
    assert together.error.startswith("too-large: page 2: ")


def test_keys_go_by_content_page_question_and_id_and_not_by_name(pool: PagePool, grey_png: Png, tmp_path: Path) -> None:
    path = grey_png("a.png", 50)

    def key(path: Path, text: str = "q", **more: Any) -> str:
        (row,) = run([job(text, path, **more)], FakeEngine(), pool, settings())
        return row.key

    first = key(path)
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(path.read_bytes())
    assert key(path) == key(moved) == first
    assert len({first, key(path, "other"), key(path, id="7"), key(grey_png("a.png", 51))}) == 4


def test_answered_rows_are_taken_one_for_each_equal_key_and_a_limit_holds(pool: PagePool, grey_png: Png) -> None:
    path = grey_png("a.png", 50)
    jobs = [job(text, path) for text in ("q0", "q1", "q1", "q1", "q2")]
    rows = list(run(jobs, FakeEngine(), pool, settings()))
    assert rows[1].key == rows[2].key == rows[3].key
    there = [rows[0].key, rows[1].key, rows[2].key]

    def take(key: str) -> bool:
        if key in there:
            there.remove(key)
            return True
        return False

    progress = Progress()
    again = list(run(jobs, FakeEngine(), pool, settings(), take_answered=take, progress=progress))
    assert [row.question for row in again] == ["q1", "q2"]
    assert (progress.skipped, progress.rows) == (3, 2)
    limited = dataclasses.replace(settings(), questions=QuestionSettings(limit=2))
    assert [row.question for row in run(jobs, FakeEngine(), pool, limited)] == ["q0", "q1"]


def test_nothing_is_loaded_where_nothing_has_to_be_asked(pool: PagePool, grey_png: Png, tmp_path: Path) -> None:
    engine = FakeEngine()
    list(run([job("q", grey_png("a.png", 50))], engine, pool, settings(), take_answered=lambda key: True))
    list(run([job("q", tmp_path / "missing.pdf")], engine, pool, settings()))
    assert (engine.starts, engine.asked) == (0, [])


@pytest.mark.parametrize("capacity", [1, 4])
def test_a_stream_is_answered_without_waiting_for_more(capacity: int, pool: PagePool, grey_png: Png) -> None:
    path, may_go_on = grey_png("a.png", 50), threading.Event()

    def slow() -> Iterator[Job]:
        yield job("first", path)
        may_go_on.wait(20)
        yield job("second", path)

    rows = run(slow(), FakeEngine(capacity=capacity), pool, settings())
    assert next(rows).question == "first"
    may_go_on.set()
    assert [row.question for row in rows] == ["second"]


def test_jobs_are_read_little_further_than_the_engine_needs(pool: PagePool, grey_png: Png) -> None:
    taken: list[int] = []
    engine = FakeEngine(capacity=4)
    rows = run(endless(grey_png("a.png", 50), taken), engine, pool, settings())
    for _ in range(20):
        next(rows)
    time.sleep(0.3)
    bound = 20 + 2 * 4 + (4 + 2) * pool.workers + 6
    assert len(taken) <= bound
    assert len(engine.asked) <= 20 + 2 * 4 + 1
    rows.close()


def test_no_more_than_its_capacity_is_submitted_to_an_engine(pool: PagePool, grey_png: Png) -> None:
    engine = Scripted(capacity=3)
    rows = run(endless(grey_png("a.png", 50), list[Any]()), engine, pool, settings())
    reader = threading.Thread(target=lambda: next(rows))
    reader.start()
    wait_until(lambda: len(engine.futures) == 3)
    time.sleep(0.2)
    assert len(engine.futures) == 3
    engine.futures["q1"].set_result(Answer("yes"))
    wait_until(lambda: len(engine.futures) == 4)
    engine.futures["q0"].set_result(Answer("yes"))
    reader.join(10)
    rows.close()


def test_latency_runs_from_submitting_to_the_answer(pool: PagePool, grey_png: Png) -> None:
    path, started = grey_png("a.png", 50), time.perf_counter()
    rows = list(run([job(f"q{n}", path) for n in range(200)], FakeEngine(capacity=8), pool, settings()))
    most = (time.perf_counter() - started) * 1e3
    assert all(row.latency_ms is not None and 0 <= row.latency_ms <= most for row in rows)


def test_threads_end_after_a_run_that_was_stopped_early(pool: PagePool, grey_png: Png) -> None:
    before = stage_threads()
    path = grey_png("a.png", 50)
    for capacity, count in itertools.product((1, 2, 50), (1, 3)):
        rows = run(endless(path, []), FakeEngine(capacity=capacity), pool, settings())
        for _ in range(count):
            next(rows)
        rows.close()
    silent = Scripted(capacity=2)  # nothing is ever answered
    held = run(endless(path, []), silent, pool, settings())
    failures: list[BaseException] = []

    def read() -> None:
        try:
            next(held)
        except ModelError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: len(silent.futures) == 2)
    silent.futures["q0"].set_exception(ModelError("gone"))
    reader.join(10)
    assert failures
    wait_until(lambda: stage_threads() <= before)


class Ended(FakeEngine):
    """Answers all but the first six questions, and then ends the run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(capacity=64)
        self._error, self._first = error, Future[Answer]()
        self._given: list[Future[Answer]] = []

    def submit(self, request: Request) -> Future[Answer]:
        number = int(request.question[1:])
        if number < 6:
            return self._first if number == 0 else Future()
        self._given.append(super().submit(request))
        if number == 8:
            for answer in self._given:
                answer.result()
            self._first.set_exception(self._error)
        return self._given[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModelError("now")], ids=["interrupt", "model"])
def test_what_is_answered_when_a_run_is_ended_leaves_though_rows_before_it_do_not(
    pool: PagePool, grey_png: Png, error: BaseException
) -> None:
    path, rows = grey_png("a.png", 50), list[Any]()
    with pytest.raises(type(error)):
        rows.extend(
            (row.question, row.status)
            for row in run([job(f"q{n}", path) for n in range(9)], Ended(error), pool, settings())
        )
    assert [row for row in rows if row[0] != "q8"] == [("q6", "ok"), ("q7", "ok")]


def test_an_engine_that_fails_mid_run_ends_it_after_the_rows_before(pool: PagePool, grey_png: Png) -> None:
    class Failing(FakeEngine):
        def submit(self, request: Request) -> Future[Answer]:
            if len(self.asked) == 5:
                raise ModelError("the GPU failed")
            return super().submit(request)

    before, path, rows = stage_threads(), grey_png("a.png", 50), list[Any]()
    with pytest.raises(ModelError, match="the GPU failed"):
        rows.extend(row.question for row in run(endless(path, []), Failing(capacity=3), pool, settings()))
    assert rows == [f"q{n}" for n in range(5)]
    wait_until(lambda: stage_threads() <= before)


@pytest.mark.parametrize("error", [InputError("line 3 is broken"), RecursionError("deep"), ValueError("digits")])
def test_a_source_that_raises_ends_the_run_after_the_rows_before(
    pool: PagePool, grey_png: Png, error: Exception
) -> None:
    path = grey_png("a.png", 50)

    def source() -> Iterator[Job]:
        yield job("q0", path)
        yield job("q1", path)
        raise error

    rows: list[str] = []
    with pytest.raises(type(error)):
        rows.extend(row.question for row in run(source(), FakeEngine(), pool, settings()))
    assert rows == ["q0", "q1"]
