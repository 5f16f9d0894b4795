from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli import Session
from idefics_cli.config import ModelSettings, PageSettings, RunSettings
from idefics_cli.errors import InputError, ModelError
from tests.conftest import ROOT, SAMPLES
from tests.fakes import FakeEngine

Png = Callable[..., Path]


def test_one_question_of_one_document(grey_png: Png) -> None:
    with Session(settings=RunSettings(pages=PageSettings(workers=1)), engine=FakeEngine()) as session:
        row = session.ask(str(grey_png("a.png", 50)), "what?")
    assert (row.answer, row.status, row.page) == ("what? @50", "ok", "1")


def test_several_runs_one_after_another_and_one_left_early(grey_png: Png, tmp_path: Path) -> None:
    paths = [str(grey_png(f"{grey}.png", grey)) for grey in (10, 20, 30)]
    (tmp_path / "q.csv").write_text("question,mine\none,1\ntwo,2\n")
    with Session(settings=RunSettings(pages=PageSettings(workers=1)), engine=FakeEngine()) as session:
        for _ in range(2):
            rows = list(session.run(paths, ["a", "b"]))
            assert [row.answer for row in rows] == [f"{q} @{grey}" for q in "ab" for grey in (10, 20, 30)] or [
                row.answer for row in rows
            ] == [f"{q} @{grey}" for grey in (10, 20, 30) for q in "ab"]
            left = session.run(paths, str(tmp_path / "q.csv"))
            assert next(left).extra == {"mine": "1"}
        assert session.ask(paths[0], "again").answer == "again @10"


def test_what_cannot_be_asked(tmp_path: Path, grey_png: Png) -> None:
    with Session(settings=RunSettings(pages=PageSettings(workers=1)), engine=FakeEngine()) as session:
        with pytest.raises(InputError):
            session.ask(str(tmp_path / "missing.pdf"), "q")
        (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 broken")
        assert session.ask(str(tmp_path / "bad.pdf"), "q").error.startswith("unreadable")
        assert session.ask(str(grey_png("a.png", 9)), "please fail").error == "model-error: asked to fail"


def test_a_checkpoint_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        Session("TINY")
    assert Session("tiny", RunSettings(model=ModelSettings(max_new_tokens=3))).settings.model == ModelSettings(
        "tiny", max_new_tokens=3
    )


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Page processes are started fresh: one that ran the script again would never end."""
    script = tmp_path / "script.py"
    script.write_text(
        "from idefics_cli import Session\n"
        "print('started')\n"
        "with Session('tiny') as session:\n"
        f"    print(session.ask({str(SAMPLES / 'documents' / 'notice.bmp')!r}, 'Who signed it?').status)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "started\nok\n"), done.stderr
