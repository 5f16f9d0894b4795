"""Writes the body of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics_cli.records import Generation, Turn


def chat_body(turns: Sequence[Turn], images: Sequence[str], generation: Generation, model: str) -> dict[str, object]:
    """Return the body that asks for an answer to a conversation.

    Args:
        turns: of texts and pages.
        images: a data URI for each page, in their order.
        generation: what is None or empty is left to the server.
        model: as the server calls it.

    """
    following = iter(images)
    messages = [{"role": turn.role, "content": _content(turn, following)} for turn in turns]
    settings: dict[str, object] = {
        "max_tokens": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "seed": generation.seed,
        "stop": list(generation.stop) or None,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return {"model": model, "messages": messages, **given}


def _content(turn: Turn, images: Iterator[str]) -> str | list[dict[str, object]]:
    """Return a turn's text, or its parts where it has pages or several texts."""
    if len(turn.content) == 1 and isinstance(turn.content[0], str):
        return turn.content[0]
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": next(images)}}
        for part in turn.content
    ]
