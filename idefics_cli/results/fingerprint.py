"""What a row answers (`key`) and what it was answered with (`settings`), as hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from idefics_cli.config import Rasterizer, RunSettings

_WHOLE = 16  # digits
_EACH = 2
_NAME = 3
_SHARD = "--shard"
_OPTIONAL = frozenset(
    (
        *("--min-new-tokens", "--temperature", "--top-p", "--seed", "--repetition-penalty", "--num-beams"),
        *("--stop", "--choices", "--examples", "--longest-edge", "--shortest-edge", "--attention"),
    )
)
"""Settings that are there only where they are given: a fingerprint holds digits of their names too."""


def settings_values(
    engine: Mapping[str, str], settings: RunSettings, *, examples: str = "", rasterizer_version: str | None = None
) -> dict[str, str]:
    """Return every setting that can change an answer, by the name that a user knows it by, and the shard.

    Args:
        engine: `EngineInfo.settings`.
        settings: of the run.
        examples: a digest of those in front of every question; empty where there are none.
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
        **({"--examples": examples} if examples else {}),
        **({_SHARD: str(settings.questions.shard)} if settings.questions.shard else {}),
    }


def settings_fingerprint(values: Mapping[str, str]) -> str:
    """Return the `settings` column: 16 digits of all settings, a point, and 2 digits for each.

    Behind another point stand those that are optional, 3 digits of the name and 2 of the value. A fingerprint is
    compared whole; the digits for each setting let a message name those that differ. A shard changes no answer: it
    stands behind a space, so that its output takes no rows of another.
    """
    shard = f" {values[_SHARD]}" if _SHARD in values else ""
    values = {name: value for name, value in values.items() if name != _SHARD}
    each = "".join(_digits(value)[:_EACH] for name, value in values.items() if name not in _OPTIONAL)
    optional = "".join(
        _digits(name)[:_NAME] + _digits(value)[:_EACH] for name, value in values.items() if name in _OPTIONAL
    )
    return f"{_digits(list(map(list, values.items())))[:_WHOLE]}.{each}{'.' if optional else ''}{optional}{shard}"


def without_shard(fingerprint: str) -> str:
    """Return the part of a fingerprint that is equal for all shards of a run."""
    return fingerprint.partition(" ")[0]


def other_shards(fingerprints: Iterable[str], values: Mapping[str, str]) -> list[str]:
    """Return the shards of rows that are of another than this run's, `I/N` each; empty for rows of a whole run.

    A run that is no shard may go on with rows of any: those of a merged output.
    """
    if _SHARD not in values:
        return []
    return sorted({fingerprint.partition(" ")[2] for fingerprint in fingerprints} - {values[_SHARD]})


def differing_settings(fingerprint: str, values: Mapping[str, str]) -> list[str]:
    """Return the names of the settings that a row with this fingerprint was not answered with, the shard apart.

    They are all named where the fingerprint can't tell which differ.
    """
    values = {name: value for name, value in values.items() if name != _SHARD}
    fingerprint, here = without_shard(fingerprint), settings_fingerprint(values)
    if fingerprint == here:
        return []
    theirs, their_optional = _parts(fingerprint)
    ours, our_optional = _parts(here)
    if len(theirs) != len(ours) or (theirs, their_optional) == (ours, our_optional):
        return list(values)
    always = [name for name in values if name not in _OPTIONAL]
    starts = range(0, len(ours), _EACH)
    differ = [
        name
        for name, start in zip(always, starts, strict=True)
        if theirs[start : start + _EACH] != ours[start : start + _EACH]
    ]
    names = {_digits(name)[:_NAME]: name for name in sorted(_OPTIONAL)}
    codes = {code for code, _ in their_optional.items() ^ our_optional.items()}
    return differ + sorted(names.get(code, "a setting of another version") for code in codes)


def _parts(fingerprint: str) -> tuple[str, dict[str, str]]:
    """Return the digits of the settings that are always there, and those of optional ones by the digits of the name."""
    each, _, optional = fingerprint.partition(".")[2].partition(".")
    pieces = [optional[start : start + _NAME + _EACH] for start in range(0, len(optional), _NAME + _EACH)]
    return each, {piece[:_NAME]: piece[_NAME:] for piece in pieces}


def row_key(digest: str | Sequence[str], pages: str, question: object, id: object) -> str:  # noqa: A002 - the column's name
    """Return the `key` column: 32 digits of what a row answers.

    Args:
        digest: of the document's bytes; where they can't be read, what the document is called. A list where documents
            are read together.
        pages: as a selection, `1-3`.
        question: a text, or the turns of a conversation.
        id: the user's identifier.

    """
    return _digits([digest, pages, question, id])[:32]


def _digits(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
