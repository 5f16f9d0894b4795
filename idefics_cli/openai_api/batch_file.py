"""The lines of OpenAI batch files: requests read, and what each is answered with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping

from idefics_cli.config import GenerationSettings
from idefics_cli.errors import Failure, FailureKind, shortened
from idefics_cli.openai_api.errors import ApiError, error_of
from idefics_cli.openai_api.request import ChatRequest, read_request
from idefics_cli.openai_api.response import Completion
from idefics_cli.questions.lines import Record
from idefics_cli.questions.messages import documents_of
from idefics_cli.records import Answer, ChatOptions, Generation, Question

URL = "/v1/chat/completions"
LONGEST_ANSWER = 1024
"""Tokens that a line may want, where --max-new-tokens is not more; what wants more is cut there."""
MOST_LINES = 50_000
MOST_BYTES = 200_000_000
"""Limits of the form."""
_SHOWN = 40


def read_line(
    record: Record, location: str, *, allow_urls: bool, settings: GenerationSettings | None = None
) -> Question:
    """Read a line of a batch file; one that can't be asked is a question with a failure.

    Args:
        record: of the line.
        location: where it stands.
        allow_urls: whether images may be http(s) addresses.
        settings: hold where the line leaves something out.

    """
    custom_id = record.values.get("custom_id")
    is_number = isinstance(custom_id, int | float) and not isinstance(custom_id, bool)
    identity = custom_id if isinstance(custom_id, str) else str(custom_id) if is_number else ""
    try:
        if record.problem:
            raise ApiError(400, record.problem)
        body = _body(record.values)
        chat = read_request(body, allow_urls=allow_urls)
        if chat.stream:
            raise ApiError(400, "stream true is not done in a batch file; leave it out", param="stream")
    except ApiError as error:
        return Question(
            "",
            location,
            id=identity,
            failure=Failure(FailureKind.BAD_QUESTION, error.message),
            chat=ChatOptions(error=error.body),
        )
    options = ChatOptions(chat.model, _generation(chat, identity, settings or GenerationSettings()), chat.logprobs)
    return Question(
        chat.question, location, id=identity, documents=documents_of(chat.turns), turns=chat.turns, chat=options
    )


def _body(values: Mapping[str, object]) -> object:
    """Return the body of a request.

    Raises:
        ApiError: there is none, or what it is to be sent to is not done here.

    """
    custom_id, method, url = (values.get(name) for name in ("custom_id", "method", "url"))
    if not isinstance(custom_id, str) or not custom_id.strip():
        raise ApiError(400, "custom_id: a text is wanted, by which the answer is known", param="custom_id")
    if method != "POST":
        raise ApiError(400, f"method: POST is wanted, not {_shown(method)}", param="method")
    if url != URL:
        raise ApiError(400, f"url: {URL} is what is answered here, not {_shown(url)}", param="url")
    if not isinstance(values.get("body"), dict):
        raise ApiError(400, "body: the object of a chat completion is wanted, with messages", param="body")
    return values["body"]


def _generation(chat: ChatRequest, custom_id: str, settings: GenerationSettings) -> Generation:
    """Return what is wanted; a line that samples without a seed draws for itself, and the same after --resume."""
    wanted = chat.generation
    temperature = settings.temperature if wanted.temperature is None else wanted.temperature
    if not temperature or wanted.seed is not None:
        return wanted
    text = custom_id if settings.seed is None else f"{settings.seed} {custom_id}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return dataclasses.replace(wanted, seed=int.from_bytes(digest, "big") >> 1)


def response_of(
    answer: Answer | None, failure: Failure | None, chat: ChatOptions | None, model: str
) -> dict[str, object]:
    """Return the response to a request, as `Row.response`.

    Args:
        answer: None where there is none.
        failure: why, then.
        chat: what was asked for; None of a question that came in another form.
        model: named where the request names none.

    """
    chat = chat or ChatOptions()
    status, body = 400, dict(chat.error or {})
    if answer is not None:
        status, body = 200, Completion(chat.model or model).body(answer, logprobs=chat.logprobs)
    elif not body:
        error = error_of(failure or Failure(FailureKind.MODEL_ERROR, "the engine gave no answer"))
        status, body = error.status, error.body
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "status_code": status,
        "request_id": f"req_{secrets.token_hex(12)}",
        "body": body,
    }


def _shown(value: object) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return shortened(text, _SHOWN)
