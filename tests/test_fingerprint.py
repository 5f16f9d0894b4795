from __future__ import annotations

import re

from idefics_cli.config import Across, PageSettings, QuestionSettings, Rasterizer, RunSettings, Shard, Split
from idefics_cli.results.fingerprint import (
    differing_settings,
    other_shards,
    row_key,
    settings_fingerprint,
    settings_values,
    without_shard,
)

ENGINE = {"model": "m 1 sha", "--prompt": "{question}"}


def values(**pages: object) -> dict[str, str]:
    return settings_values(ENGINE, RunSettings(pages=PageSettings(**pages)))  # type: ignore[arg-type]


def test_every_setting_that_can_change_answers_is_in_the_fingerprint() -> None:
    variants = [
        values(),
        values(split=Split.NEVER),
        values(split_em=12.0),
        values(across=Across.EACH),
        values(rasterizer=Rasterizer.POPPLER),
        settings_values(ENGINE, RunSettings(), rasterizer_version="another"),
        settings_values(ENGINE | {"--prompt": "{question}!"}, RunSettings()),
    ]
    assert len({settings_fingerprint(one) for one in variants}) == len(variants)
    assert settings_fingerprint(values(workers=3, max_pages=7)) == settings_fingerprint(values())
    assert re.fullmatch(r"pdfium \d+\..*", values()["--rasterizer or its version"])


def test_a_fingerprint_names_the_settings_that_differ() -> None:
    here = values()
    assert differing_settings(settings_fingerprint(here), here) == []
    assert differing_settings(settings_fingerprint(values(split=Split.NEVER)), here) == ["--split"]
    fewer = {name: value for name, value in here.items() if name != "--split"}
    assert differing_settings(settings_fingerprint(fewer), here) == list(here)
    assert differing_settings("", here) == list(here)


def test_settings_that_are_given_or_not_are_named_by_their_flags() -> None:
    here = values()
    assert re.fullmatch(r"[0-9a-f]{16}\.[0-9a-f]+", settings_fingerprint(here))  # as before there were optional ones

    def differ(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
        return differing_settings(settings_fingerprint({**theirs, **here}), {**here, **ours})

    warm = {"--temperature": "0.7", "--seed": "0"}
    assert differ({}, warm) == ["--seed", "--temperature"]
    assert differ(warm, {}) == ["--seed", "--temperature"]
    assert differ(warm, warm | {"--seed": "1"}) == ["--seed"]
    assert differ(warm, {"--choices": "['a', 'b']"}) == ["--choices", "--seed", "--temperature"]
    changed = {**here, "--split": "never 11", "--stop": "['x']"}
    assert differing_settings(settings_fingerprint(changed), here) == ["--split", "--stop"]
    assert differing_settings(settings_fingerprint(here) + ".abc12", here) == ["a setting of another version"]


def test_settings_that_agree_in_two_digits_are_told_apart() -> None:
    """Two digits a setting agree once in 256: the fingerprint is compared whole."""
    by_digits: dict[str, int] = {}
    for number in range(1000):
        fingerprint = settings_fingerprint({"--max-new-tokens": str(number)})
        digits = fingerprint.partition(".")[2]
        assert len(fingerprint) == 16 + 1 + 2
        if digits in by_digits:
            other = {"--max-new-tokens": str(by_digits[digits])}
            assert differing_settings(fingerprint, other) == ["--max-new-tokens"]
        by_digits.setdefault(digits, number)
    assert len(by_digits) <= 256


def test_a_key_says_what_a_row_answers() -> None:
    keys = {
        row_key("sha", "1", "q", ""),
        row_key("other", "1", "q", ""),
        row_key("sha", "1-2", "q", ""),
        row_key("sha", "1", "p", ""),
        row_key("sha", "1", "q", "7"),
        row_key("sha", "1", "q", 7),
        row_key("sha", "1", "\ud800", ["a", {"b": 1}]),
    }
    assert len(keys) == 7
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in keys)
    assert row_key("sha", "1", "q", "7") in keys


def test_a_shard_stands_behind_the_settings_and_changes_none() -> None:
    def of(shard: Shard | None, split: Split = Split.AUTO) -> dict[str, str]:
        given = RunSettings(PageSettings(split=split), questions=QuestionSettings(shard=shard))
        return settings_values({}, given)

    whole, first, second = of(None), of(Shard(1, 4)), of(Shard(2, 4))
    assert settings_fingerprint(first) == f"{settings_fingerprint(whole)} 1/4"
    for one in (whole, first, second):
        assert without_shard(settings_fingerprint(one)) == settings_fingerprint(whole)
        for other in (whole, first, second):
            assert differing_settings(settings_fingerprint(one), other) == []
    assert differing_settings(settings_fingerprint(of(Shard(1, 4), Split.NEVER)), second) == ["--split"]
    found = [settings_fingerprint(one) for one in (whole, first, second)]
    assert other_shards(found, first) == ["", "2/4"]
    assert other_shards(found[1:2], first) == []
    assert other_shards(found, whole) == []
