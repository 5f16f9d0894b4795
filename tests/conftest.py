"""Fixtures: real files, the tiny model, one pool of page processes."""

from __future__ import annotations

import csv
import os
import tempfile

# Page processes and other processes of tests want cores too: threads that wait for one another take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal

# No server of whoever runs the tests is to answer them.
os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="idefics-cli-tests-")

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_cli.config import Device, Dtype, ModelSettings, PageSettings
from idefics_cli.documents.pool import PagePool
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.records import PreparedPage, Request

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background: processes of tests would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
TINY = Idefics2ImageProcessor(490, 196)


@pytest.fixture(scope="session")
def pool() -> Iterator[PagePool]:
    with PagePool(PageSettings(workers=2)) as pool:
        yield pool


@pytest.fixture(scope="session")
def tiny_settings() -> ModelSettings:
    return ModelSettings("tiny", device=Device.CPU, dtype=Dtype.FLOAT32, max_new_tokens=32)


@pytest.fixture
def grey_png(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, grey: int, size: tuple[int, int] = (300, 400)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (grey, grey, grey))
        image.putpixel((0, 0), (0, 0, 0))  # not quite flat
        image.save(path)
        return path

    return make


@pytest.fixture(scope="session")
def sample_requests() -> list[Request]:
    """200 requests over parts of sample images and noise, split and unsplit, many a page."""
    with (SAMPLES / "questions.csv").open(encoding="utf-8", newline="") as stream:
        questions = list(dict.fromkeys(row["question"] for row in csv.DictReader(stream)))
    pages = []
    for name, box, split in (
        ("price-list.gif", (0, 0, 400, 300), True),
        ("notice.bmp", (0, 0, 346, 490), False),
        ("transparent.png", (0, 0, 500, 350), False),
        ("small-print.png", (0, 0, 450, 250), False),
    ):
        with Image.open(SAMPLES / "documents" / name) as image:
            page = image.convert("RGB").crop(box)
        pages.append(PreparedPage(TINY.crops(page, split=split), "pillow", 0.0, 0.0))
    noise = np.random.default_rng(3).integers(0, 255, (300, 220, 3), dtype=np.uint8)
    pages.append(PreparedPage(TINY.crops(Image.fromarray(noise), split=False), "pillow", 0.0, 0.0))
    return [
        Request(questions[(number * 7) % len(questions)], (pages[number % len(pages)],), (str(number % len(pages)),))
        for number in range(200)
    ]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli() -> Run:
    """Run idefics-cli in a process of its own."""

    def run(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "idefics_cli", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=300,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        )

    return run
