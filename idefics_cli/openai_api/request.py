"""Reads the body of a chat completion into a conversation and how its answer is generated.

Fields that nobody knows are ignored, since clients send many. What is known, would change the answer and is not done
here is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.errors import RowFailedError, shortened
from idefics_cli.openai_api.errors import ApiError
from idefics_cli.questions.messages import question_of, read_messages
from idefics_cli.records import Generation, Turn

_LEAST_TEMPERATURE = 0.01  # below it, logits outgrow float32: the most probable token is taken
_MOST_TEMPERATURE = 2.0
_MOST_STOPS = 16
_SHOWN = 40
_HARMLESS: Mapping[str, tuple[object, ...]] = {
    # fields that ask for what is not done here, and the values that ask for nothing
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "top_logprobs": (0,),
}
_ROLES = {"developer": "system"}
_DATA = "data:"
_ADDRESS = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion that is wanted."""

    model: str
    """As the client names it; empty where it does not."""
    turns: tuple[Turn, ...]
    """Their documents are data URIs, or http(s) addresses where these are allowed."""
    generation: Generation
    """Its temperature is 0 or one to be drawn at; None leaves it to the model."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the usage."""
    logprobs: bool = False

    @property
    def question(self) -> str:
        """The texts of the last turn."""
        return question_of(self.turns)


def read_request(body: object, *, allow_urls: bool = False) -> ChatRequest:
    """Read a body, parsed from JSON.

    Args:
        body: whose fields are not trusted.
        allow_urls: whether images may be http(s) addresses.

    Raises:
        ApiError: it can't be answered (400); names the field.

    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object with messages")
    _check_harmless(body)
    stream = _boolean(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options: an object is wanted", param="stream_options")
    model = body.get("model") or ""
    if not isinstance(model, str):
        raise ApiError(400, "model: a text is wanted", param="model")
    return ChatRequest(
        model,
        _turns(body.get("messages"), allow_urls=allow_urls),
        _generation(body),
        stream=stream,
        include_usage=stream and bool(options.get("include_usage")),
        logprobs=_boolean(body, "logprobs"),
    )


def _check_harmless(body: Mapping[str, Any]) -> None:
    for name, harmless in _HARMLESS.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise ApiError(
                400, f"{name} {_shown(value)} is not done here; leave it out", param=name, code="unsupported"
            )


def _generation(body: Mapping[str, Any]) -> Generation:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    temperature = _number(body, "temperature", 0.0, _MOST_TEMPERATURE)
    if temperature is not None and temperature < _LEAST_TEMPERATURE:
        temperature = 0.0
    seed = _whole(body, "seed", -(2**63), 2**63 - 1)
    return Generation(
        max_new_tokens=_whole(body, name, 1, 10**9),
        temperature=temperature,
        top_p=_number(body, "top_p", 1e-6, 1.0),
        seed=None if seed is None else seed % 2**63,
        stop=_stops(body.get("stop")),
    )


def _number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise ApiError(400, f"{name}: a number from {least:g} to {most:g} is wanted, not {_shown(value)}", param=name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        words = f"{name}: a whole number from {least} to {most} is wanted, not {_shown(value)}"
        raise ApiError(400, words, param=name)
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name}: true or false is wanted, not {_shown(value)}", param=name)
    return bool(value)


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ApiError(400, "stop: a text, or a list of texts, is wanted", param="stop")
    if len(texts) > _MOST_STOPS:
        raise ApiError(400, f"stop: {len(texts)} texts; at most {_MOST_STOPS} are taken", param="stop")
    for text in texts:
        _check_text(text, "stop")
    return tuple(texts)


def _turns(messages: object, *, allow_urls: bool) -> tuple[Turn, ...]:
    """Return the turns of messages; what systems say, wherever it stands, is one turn at the beginning."""
    if not isinstance(messages, list) or not messages:
        wanted = 'a list of turns is wanted, as in [{"role": "user", "content": "..."}]'
        raise ApiError(400, f"messages: {wanted}", param="messages")
    told: list[dict[str, object]] = []
    turns: list[dict[str, object]] = []
    for at, message in enumerate(messages):
        role, parts = _message(message, f"messages[{at}]", allow_urls=allow_urls)
        if role == "system":
            if told and parts:
                told.append({"type": "text", "text": "\n"})
            told += parts
        elif parts:
            turns.append({"role": role, "content": parts})
    if all(turn["role"] != "user" for turn in turns):
        raise ApiError(400, "messages: no turn of the user, which asks", param="messages")
    if any(str(part["text"]).strip() for part in told):
        turns.insert(0, {"role": "system", "content": told})
    try:
        return read_messages(turns)
    except (ValueError, RowFailedError) as error:
        raise ApiError(400, str(error), param="messages") from error


def _message(message: object, location: str, *, allow_urls: bool) -> tuple[str, list[dict[str, object]]]:
    """Return the role of a message and its parts as `read_messages` takes them."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{location}: an object with role and content is wanted", param=location)
    role = message.get("role")
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ("system", "user", "assistant"):
        words = f"{location}.role: {_shown(role)} is none of system, developer, user and assistant"
        raise ApiError(400, words, param=f"{location}.role")
    content = message.get("content")
    if isinstance(content, str) or content is None:
        _check_text(content or "", f"{location}.content")
        return role, [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        words = f"{location}.content: a text or a list of parts is wanted"
        raise ApiError(400, words, param=f"{location}.content")
    parts = [_part(part, f"{location}.content[{at}]", allow_urls=allow_urls) for at, part in enumerate(content)]
    if role == "system" and any(part["type"] != "text" for part in parts):
        raise ApiError(400, f"{location}.content: a system turn holds text only", param=f"{location}.content")
    return role, parts


def _part(part: object, location: str, *, allow_urls: bool) -> dict[str, object]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image_url", "file"):
        words = f"{location}: a part has one of the types text, image_url and file, not {_shown(kind)}"
        raise ApiError(400, words, param=location)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ApiError(400, f"{location}.text: a text is wanted", param=f"{location}.text")
        _check_text(part["text"], f"{location}.text")
        return {"type": "text", "text": part["text"]}
    key = "url" if kind == "image_url" else "file_data"
    given = part.get(kind)
    source = given.get(key) if isinstance(given, dict) else given if kind == "image_url" else None
    if not isinstance(source, str) or not source.strip():
        wanted = "a data URI is wanted" if kind == "image_url" else "the file as base64 is wanted"
        raise ApiError(400, f"{location}.{kind}.{key}: {wanted}", param=f"{location}.{kind}.{key}")
    return {"type": "document", "document": _checked_source(source.strip(), kind, location, allow_urls=allow_urls)}


def _checked_source(source: str, kind: str, location: str, *, allow_urls: bool) -> str:
    """Return a data URI, or an address where these are allowed: never anything that names a file of this machine."""
    if source[: len(_DATA)].lower() == _DATA:
        return source
    if source[:8].lower().startswith(_ADDRESS):
        if allow_urls:
            return source
        words = f"{location}: addresses are fetched only with --allow-urls; send the image as a data URI"
        raise ApiError(400, words, param=location, code="urls_not_allowed")
    if kind == "file" and "://" not in source:  # base64 by itself
        return f"data:application/octet-stream;base64,{source}"
    raise ApiError(400, f"{location}: a data URI is wanted, data:image/png;base64,...", param=location)


def _check_text(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates
        raise ApiError(400, f"{param}: no text: {error.reason}", param=param) from error


def _shown(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=repr), _SHOWN)
