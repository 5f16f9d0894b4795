"""Makes the bodies of chat completions, whole and as the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from idefics_cli.records import Answer, GeneratedTokens

_DONE = b"data: [DONE]\n\n"
_NO_TEXT = b'"content": ""'  # stands in no model's name: quotes are escaped there
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_HELD_BACK = "\N{REPLACEMENT CHARACTER}"  # the bytes of a character that are not all there


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion that is being answered: what all of its bodies and chunks have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, answer: Answer, *, logprobs: bool) -> dict[str, object]:
        """Return the body of a whole answer; beside the form's own fields stands what rows of `run` say too."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": logprobs_of(answer) if logprobs else None,
            "finish_reason": _finish_reason(answer),
        }
        own = {
            "confidence": answer.confidence if answer.is_scored else None,
            "mean_logprob": answer.mean_logprob if answer.is_scored else None,
            "warning": answer.warning,
            "vision_ms": answer.vision_ms if answer.is_timed else None,
            "prefill_ms": answer.prefill_ms if answer.is_timed else None,
            "decode_ms": answer.decode_ms if answer.is_timed else None,
        }
        return self._body("chat.completion", [choice]) | {"usage": usage_of(answer), "idefics_cli": own}

    def chunks(self, *, include_usage: bool) -> Chunks:
        """Return what makes the events of a stream; with the usage it has one more, and the others say null."""
        return Chunks(self, include_usage=include_usage)

    def chunk_body(self, choices: Sequence[object]) -> dict[str, object]:
        """Return the body of a chunk."""
        return self._body("chat.completion.chunk", choices)

    def _body(self, kind: str, choices: Sequence[object]) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


class Chunks:
    """Makes the server-sent events of a stream."""

    def __init__(self, completion: Completion, *, include_usage: bool) -> None:
        self._body, self._include_usage = completion.chunk_body, include_usage
        # All that is not text is the same in each chunk: it is written once.
        self._before, _, self._behind = self._chunk({"content": ""}, None).rpartition(_NO_TEXT)

    def first(self) -> bytes:
        """Return the event that a stream begins with."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def text(self, text: str, tokens: Sequence[object] | None = None) -> bytes:
        """Return the event of a piece of the answer, with its tokens where these are wanted."""
        if tokens is None:
            return b'%b"content": %b%b' % (self._before, _json(text), self._behind)
        return self._chunk({"content": text}, None, {"content": tokens, "refusal": None})

    def end(self, answer: Answer) -> bytes:
        """Return the events that a stream ends with: why the answer ended, and the usage, whose `choices` are empty."""
        last = self._chunk({}, _finish_reason(answer))
        usage = event(self._body([]) | {"usage": usage_of(answer)}) if self._include_usage else b""
        return last + usage + _DONE

    def _chunk(self, delta: object, finish_reason: str | None, logprobs: object = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._body([choice]) | ({"usage": None} if self._include_usage else {}))


def event(body: Mapping[str, object]) -> bytes:
    """Return a body as a server-sent event."""
    return b"data: %b\n\n" % _json(body)


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def usage_of(answer: Answer) -> dict[str, int]:
    """Return how many tokens were read and written; image tokens and an end token count."""
    total = answer.prompt_tokens + answer.new_tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.new_tokens, "total_tokens": total}


def logprobs_of(answer: Answer) -> dict[str, object] | None:
    """Return the tokens of an answer with their log-probabilities; None where the engine does not say."""
    if answer.tokens is None:
        return None
    return {"content": TokenStream().added(answer.tokens, whole=answer.text), "refusal": None}


class TokenStream:
    """Tells which tokens a growing answer adds, with their log-probabilities.

    A token's text is what it adds to that of those before it; those that add none, such as the end, are left out.
    """

    def __init__(self) -> None:
        self._count, self._text = 0, ""

    def added(self, tokens: GeneratedTokens, *, whole: str | None = None) -> list[dict[str, object]]:
        """Return the tokens since the last call; `whole` is the text of an answer that has no others."""
        found: list[dict[str, object]] = []
        for count in range(self._count + 1, len(tokens.ids) + 1):
            is_last = count == len(tokens.ids)
            text = whole if is_last and whole is not None else _safe_text(tokens, count)
            if text.startswith(self._text) and len(text) > len(self._text):
                new, self._text = text[len(self._text) :], text
                logprob = tokens.logprobs[count - 1]
                found.append({"token": new, "logprob": logprob, "bytes": list(new.encode()), "top_logprobs": []})
            self._count = count
        return found


class TextStream:
    """Tells what a growing answer adds to what was sent: never anything that its end would take back."""

    def __init__(self) -> None:
        self._sent = ""

    def added(self, tokens: GeneratedTokens) -> str:
        """Return what can be sent after the tokens so far."""
        return self._advance(_safe_text(tokens, len(tokens.ids)))

    def rest(self, answer: Answer) -> str:
        """Return what is still to be sent of the whole answer."""
        return self._advance(answer.text)

    def _advance(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        added, self._sent = text[len(self._sent) :], text
        return added


def _safe_text(tokens: GeneratedTokens, count: int) -> str:
    """Return the text of so many tokens of an answer, without what those that follow may take back."""
    text, stop = tokens.decode(tokens.ids[:count]), tokens.stop
    text = text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
    text = text.rstrip(_HELD_BACK)
    text = text[: len(text) - max((_overlap(text, one) for one in stop), default=0)]
    return text.rstrip()  # no answer ends with spaces


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.is_complete else "length"
