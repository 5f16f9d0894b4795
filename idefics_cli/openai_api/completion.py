"""Reads the body of a chat completion, as any server of the form writes it, into an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from idefics_cli.errors import one_line, shortened
from idefics_cli.records import Answer, GeneratedTokens

_SHOWN = 200
_MOST_TOKENS = 8192  # their texts are joined once for each
_BROKEN_OFF = ("error", "abort")  # finish reasons of servers that failed in the middle


class NoTextError(Exception):
    """A completion of the right form that holds no text: refused, filtered, or a call of a tool."""


def read_completion(
    body: object, stop: Sequence[str] = (), redacted: Callable[[str], str] = lambda words: words
) -> Answer:
    """Read a body, parsed from JSON, whose fields are not trusted.

    Confidence, warning and times are those of `idefics_cli`, which our own server adds; else the confidence is made of
    the log-probabilities of the tokens, among which there is no end token.

    Args:
        body: of a whole completion, not of a stream.
        stop: texts before the first of which the answer is cut, since some servers leave them in.
        redacted: takes a key out of words of the server that become an error or a warning.

    Raises:
        ValueError: it is no completion, or one that was broken off; says what is missing.
        NoTextError: it is one without a text.

    """
    if not isinstance(body, dict):
        raise ValueError("its answer is no JSON object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"its answer has no choices: {_shown(body, redacted)}")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError(f"its answer has no message: {_shown(choice, redacted)}")
    reason, content = choice.get("finish_reason"), message.get("content")
    if reason in _BROKEN_OFF:
        raise ValueError(f"its answer was broken off (finish_reason {reason})")
    text = _joined(content)
    if text is None and content is not None:
        raise ValueError(f"the content of its answer is no text: {_shown(content, redacted)}")
    is_other = not text and any(message.get(name) for name in ("refusal", "tool_calls", "function_call"))
    if text is None or is_other or reason == "content_filter":
        raise NoTextError(_without_text(message, reason, redacted))
    starts = [start for start in map(text.find, stop) if start >= 0]
    own = _mapping(body.get("idefics_cli"))
    scores = _scores(own, choice.get("logprobs"))
    usage = _mapping(body.get("usage"))
    new_tokens = _count(usage.get("completion_tokens"))
    is_cut = reason == "length"
    warning = (f"answer cut at {new_tokens} tokens" if new_tokens else "answer cut at its limit") if is_cut else ""
    times = [_number(own.get(name)) for name in ("vision_ms", "prefill_ms", "decode_ms")]
    vision_ms, prefill_ms, decode_ms = (value or 0.0 for value in times)
    return Answer(
        _text(text[: min(starts, default=len(text))]).strip(),
        *(scores or (0.0, 0.0)),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        new_tokens=new_tokens,
        vision_ms=vision_ms,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        warning=_shown(own["warning"], redacted) if isinstance(own.get("warning"), str) else warning,
        is_complete=not is_cut,
        is_scored=scores is not None,
        is_timed=None not in times,
        tokens=_tokens(choice.get("logprobs"), stop),
    )


def _joined(content: object) -> str | None:
    """Return the text of a message, which some servers give as a list of parts; None where it is something else."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if known and len(known) == len(texts) else None


def _without_text(message: Mapping[str, Any], reason: object, redacted: Callable[[str], str]) -> str:
    refusal = message.get("refusal")
    words = f": {_shown(refusal, redacted)}" if isinstance(refusal, str) and refusal else ""
    if reason == "length":
        words = words or ": a larger --max-new-tokens may leave room for it"
    return f"its answer holds no text (finish_reason {_shown(reason, redacted)}){words}"


def _scores(own: Mapping[str, Any], logprobs: object) -> tuple[float, float] | None:
    """Return the product of the tokens' probabilities and the mean of their logarithms; None where they lack."""
    confidence, mean = _number(own.get("confidence")), _number(own.get("mean_logprob"))
    if confidence is not None and mean is not None and 0 <= confidence <= 1:
        return confidence, mean
    content = _mapping(logprobs).get("content")
    tokens = content if isinstance(content, list) else []
    values = [_number(_mapping(token).get("logprob")) for token in tokens]
    known = [min(0.0, value) for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.exp(math.fsum(known)), math.fsum(known) / len(known)


def _tokens(logprobs: object, stop: Sequence[str]) -> GeneratedTokens | None:
    """Return the tokens that the server lists, with their positions for ids.

    None where there are none or too many, or where one lacks its text or a finite log-probability.
    """
    content = _mapping(logprobs).get("content")
    entries = [_mapping(entry) for entry in content] if isinstance(content, list) else []
    if len(entries) > _MOST_TOKENS:
        return None
    found = [(_bytes_of(entry), _number(entry.get("logprob"))) for entry in entries]
    pieces = [piece for piece, _ in found if piece is not None]
    values = [value for _, value in found if value is not None]
    if not found or len(pieces) < len(found) or len(values) < len(found):
        return None

    def decode(ids: Sequence[int]) -> str:
        return _text(b"".join(pieces[at] for at in ids).decode("utf-8", "replace").strip())

    return GeneratedTokens(tuple(range(len(found))), tuple(values), decode, tuple(stop))


def _bytes_of(entry: Mapping[str, Any]) -> bytes | None:
    """Return a token's bytes, which may be a part of a character; None where it has neither bytes nor a text."""
    raw, text = entry.get("bytes"), entry.get("token")
    if isinstance(raw, list) and all(type(value) is int and 0 <= value < 256 for value in raw):
        return bytes(raw)
    return text.encode("utf-8", "replace") if isinstance(text, str) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _text(value: str) -> str:
    """Return a text that can be written: half of a pair of surrogates, as JSON may hold it, can't."""
    return value.encode("utf-8", "replace").decode()


def _shown(value: object, redacted: Callable[[str], str]) -> str:
    text = one_line(redacted(str(value)))  # before it is cut: half a key is too much
    return _text(shortened(text, _SHOWN))
