from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from idefics_cli.config import (
    Format,
    MaxFailures,
    ModelSettings,
    OutputSettings,
    PageSettings,
    RetryFailed,
    RunSettings,
)
from idefics_cli.errors import UsageError


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunSettings().max_failures = None  # type: ignore[misc]


def test_contradictions_are_usage_errors_that_name_the_flag() -> None:
    with pytest.raises(UsageError, match="--resume and --overwrite"):
        OutputSettings(Path("x"), resume=True, overwrite=True)
    with pytest.raises(UsageError, match="--retry-failed"):
        OutputSettings(Path("x"), retry_failed=RetryFailed.ALL)
    with pytest.raises(UsageError, match="-o FILE"):
        OutputSettings(resume=True)
    with pytest.raises(UsageError, match=r"\{question\}"):
        ModelSettings(prompt="Answer briefly.")
    with pytest.raises(UsageError, match="--page-timeout"):
        PageSettings(page_timeout=0)
    with pytest.raises(UsageError, match="--max-pixels"):
        PageSettings(max_pixels=0)
    with pytest.raises(UsageError, match="--max-pages"):
        PageSettings(max_pages=-1)
    with pytest.raises(UsageError, match="--wait"):
        OutputSettings(Path("x"), wait=-1)
    with pytest.raises(UsageError, match="--excel-safe"):
        OutputSettings(Path("x"), format=Format.JSONL, excel_safe=True)
    with pytest.raises(UsageError, match="--gpu-memory"):
        ModelSettings(gpu_memory=-1)
    for text in ("x", "-3", "101%", "5 %"):
        with pytest.raises(UsageError, match="--max-failures"):
            MaxFailures.parse(text)


def test_workers_default_to_the_cores() -> None:
    assert PageSettings(workers=3).worker_count == 3
    assert 1 <= PageSettings().worker_count <= 16


def test_failures_are_too_many_by_number_or_by_share_once_there_is_a_share() -> None:
    assert not MaxFailures.parse("3").are_exceeded(3, 4)
    assert MaxFailures.parse("3").are_exceeded(4, 4)
    assert MaxFailures.parse("0").are_exceeded(1, 1)
    assert not MaxFailures.parse("10%").are_exceeded(10, 19)
    assert MaxFailures.parse("10%").are_exceeded(3, 20)
    assert not MaxFailures.parse("10%").are_exceeded(2, 20)
