from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from idefics_cli.config import ModelSettings, OutputSettings, PageSettings, RunSettings
from idefics_cli.errors import UsageError


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunSettings().limit = 3  # type: ignore[misc]


def test_contradictions_are_usage_errors_that_name_the_flag() -> None:
    with pytest.raises(UsageError, match="--resume and --overwrite"):
        OutputSettings(Path("x"), resume=True, overwrite=True)
    with pytest.raises(UsageError, match="--retry-failed"):
        OutputSettings(Path("x"), retry_failed=True)
    with pytest.raises(UsageError, match="-o FILE"):
        OutputSettings(resume=True)
    with pytest.raises(UsageError, match=r"\{question\}"):
        ModelSettings(prompt="Answer briefly.")
    with pytest.raises(UsageError, match="--page-timeout"):
        PageSettings(page_timeout=0)
    with pytest.raises(UsageError, match="--max-pixels"):
        PageSettings(max_pixels=0)


def test_workers_default_to_the_cores() -> None:
    assert PageSettings(workers=3).worker_count == 3
    assert 1 <= PageSettings().worker_count <= 16
