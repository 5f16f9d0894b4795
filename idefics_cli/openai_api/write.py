"""Writes the body of a request for a chat completion: what `request` reads, for servers of others too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics_cli.records import Generation, Turn

QUESTION = "{question}"


def write_messages(turns: Sequence[Turn], images: Sequence[str], template: str = QUESTION) -> list[dict[str, object]]:
    """Return the messages of a conversation.

    A turn of one text is that text, as some servers want it; an image is a part of the type `image_url`.

    Args:
        turns: of texts and pages, the last of which is the user's.
        images: the data URI of each page, in their order.
        template: `--prompt`, around the last text of each turn of the user.

    """
    following = iter(images)
    return [{"role": turn.role, "content": _content(turn, following, template)} for turn in turns]


def write_request(
    model: str,
    messages: Sequence[dict[str, object]],
    generation: Generation,
    *,
    tokens_field: str = "max_tokens",
    logprobs: bool = False,
) -> dict[str, object]:
    """Return the body of a request; what is not given is left out.

    Args:
        model: its name on the server.
        messages: of `write_messages`.
        generation: how the answer is generated.
        tokens_field: the name of the longest answer: `max_tokens`, or `max_completion_tokens` of newer servers.
        logprobs: whether the tokens' log-probabilities are wanted.

    """
    fields: dict[str, object] = {
        "model": model,
        "messages": list(messages),
        tokens_field: generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "seed": generation.seed,
        "stop": list(generation.stop) or None,
        "logprobs": True if logprobs else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def chat_body(turns: Sequence[Turn], images: Sequence[str], generation: Generation, model: str) -> dict[str, object]:
    """Return the body that asks for an answer to a conversation.

    Args:
        turns: of texts and pages.
        images: a data URI for each page, in their order.
        generation: what is None or empty is left to the server.
        model: as the server calls it.

    """
    return write_request(model, write_messages(turns, images), generation)


def _content(turn: Turn, images: Iterator[str], template: str) -> str | list[dict[str, object]]:
    texts = [at for at, part in enumerate(turn.content) if isinstance(part, str)]
    asked = texts[-1] if texts and turn.role == "user" else None
    parts: list[dict[str, object]] = []
    for at, part in enumerate(turn.content):
        if isinstance(part, str):
            text = template.replace(QUESTION, part) if at == asked else part
            parts.append({"type": "text", "text": text})
        else:
            parts.append({"type": "image_url", "image_url": {"url": next(images)}})
    if len(parts) == len(texts) == 1:
        return str(parts[0]["text"])
    return parts
