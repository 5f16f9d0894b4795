"""What a row answers (`key`) and what it was answered with (`settings`), as hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata

from idefics_cli.config import Rasterizer, RunSettings

_WHOLE = 16  # digits
_EACH = 2


def settings_values(
    engine: Mapping[str, str], settings: RunSettings, *, rasterizer_version: str | None = None
) -> dict[str, str]:
    """Return every setting that can change an answer, by the name that a user knows it by.

    Args:
        engine: `EngineInfo.settings`.
        settings: of the run.
        rasterizer_version: of what renders PDF pages: another version may draw other pixels. None stands for the
            installed pypdfium2; that of Poppler is to be given.

    """
    pages = settings.pages
    if rasterizer_version is None:
        rasterizer_version = metadata.version("pypdfium2") if pages.rasterizer is Rasterizer.PDFIUM else ""
    return {
        **engine,
        "--across": pages.across,
        "--split": f"{pages.split} {pages.split_em:g}",
        "--rasterizer or its version": f"{pages.rasterizer} {rasterizer_version}".strip(),
    }


def settings_fingerprint(values: Mapping[str, str]) -> str:
    """Return the `settings` column: 16 digits of all settings, a point, and 2 digits for each.

    It is compared whole; the digits for each setting let a message name those that differ.
    """
    each = "".join(_digits(value)[:_EACH] for value in values.values())
    return f"{_digits(list(map(list, values.items())))[:_WHOLE]}.{each}"


def differing_settings(fingerprint: str, values: Mapping[str, str]) -> list[str]:
    """Return the names of the settings that a row with this fingerprint was not answered with.

    They are all named where the fingerprint can't tell which differ.
    """
    here = settings_fingerprint(values)
    if fingerprint == here:
        return []
    theirs, ours = fingerprint.partition(".")[2], here.partition(".")[2]
    if len(theirs) != len(ours) or theirs == ours:
        return list(values)
    starts = range(0, len(ours), _EACH)
    return [
        name
        for name, start in zip(values, starts, strict=True)
        if theirs[start : start + _EACH] != ours[start : start + _EACH]
    ]


def row_key(digest: str, pages: str, question: str, id: object) -> str:  # noqa: A002 - the column's name
    """Return the `key` column: 32 digits of what a row answers.

    Args:
        digest: of the document's bytes; where they can't be read, what the document is called.
        pages: as a selection, `1-3`.
        question: with its conversation or examples.
        id: the user's identifier.

    """
    return _digits([digest, pages, question, id])[:32]


def _digits(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
