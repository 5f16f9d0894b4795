from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import (
    Format,
    MaxFailures,
    ModelSettings,
    OutputSettings,
    PageSettings,
    RetryFailed,
    RunSettings,
    parse_choices,
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"top_p": 0.9}, "--top-p is for sampling: give --temperature above 0 too"),
        ({"seed": 1}, "--seed is for sampling"),
        ({"seed": 1, "temperature": 0.0}, "--seed is for sampling"),
        ({"temperature": 0.7, "num_beams": 2}, "--temperature and --num-beams exclude each other"),
        ({"temperature": 0.001}, "--temperature takes 0"),
        ({"temperature": -1.0}, "--temperature takes 0"),
        ({"temperature": float("nan")}, "--temperature takes 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p takes a number from"),
        ({"temperature": 1.0, "top_p": 1.1}, "--top-p takes a number from"),
        ({"temperature": 1.0, "seed": -1}, "--seed takes a number from 0"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty takes a number from"),
        ({"repetition_penalty": float("inf")}, "--repetition-penalty takes a number from"),
        ({"num_beams": 0}, "--num-beams takes a number from 1"),
        ({"min_new_tokens": -1}, "--min-new-tokens takes a number from 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "--min-new-tokens 9 is more than --max-new-tokens 8"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"stop": ("a", "")}, "--stop takes a text"),
        ({"choices": ("a",)}, "--choices takes two answers or more"),
        ({"choices": ()}, "--choices takes two answers or more"),
        ({"choices": ("a", " ")}, "--choices takes two answers or more"),
        ({"choices": ("a", "b", "a")}, "--choices holds 'a' twice"),
        ({"choices": ("a", "b"), "stop": ("c",)}, "leave --stop out"),
        ({"choices": ("a", "b"), "temperature": 1.0}, "leave --temperature out"),
        ({"choices": ("a", "b"), "num_beams": 2}, "leave --num-beams out"),
        ({"choices": ("a", "b"), "max_new_tokens": 9}, "leave --max-new-tokens out"),
        ({"choices": ("a", "b"), "min_new_tokens": 1}, "leave --min-new-tokens out"),
        ({"choices": ("a", "b"), "repetition_penalty": 1.1}, "leave --repetition-penalty out"),
    ],
)
def test_generation_settings_that_contradict_one_another(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        ModelSettings("tiny", **given)


def test_choices_are_read_as_a_line_of_csv() -> None:
    assert parse_choices("Yes,No, not said") == ("Yes", "No", "not said")
    assert parse_choices('"Smith, John", Other') == ("Smith, John", "Other")
    for bad in ('"a', "a\nb,c", ""):
        with pytest.raises(UsageError, match="--choices"):
            ModelSettings(choices=parse_choices(bad))
