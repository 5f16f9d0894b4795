from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from idefics_cli.config import PageSettings, RunSettings, Split
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.records import Document, Job, Question
from idefics_cli.rehearsal import rehearse
from tests.fakes import FakeEngine


def test_everything_is_resolved_and_nothing_asked(grey_png: Callable[..., Path], tmp_path: Path) -> None:
    good, bad = grey_png("a.png", 40), tmp_path / "b.png"
    bad.write_bytes(b"nothing")
    jobs = [Job(Question(f"q{n}", "f"), Document(str(path), str(path))) for path in (good, bad) for n in range(2)]
    engine = FakeEngine()
    settings = RunSettings(pages=PageSettings(split=Split.ALWAYS, workers=1))
    with PagePool(settings.pages) as pool:
        found = rehearse(jobs, engine, pool, settings, done=frozenset())
    assert (found.rows, found.skipped, found.pages, found.split_pages, found.failed) == (4, 0, 1, 1, 2)
    assert [words.partition(": ")[2].partition(":")[0] for words in found.failures] == ["unsupported"]
    assert engine.asked == []
