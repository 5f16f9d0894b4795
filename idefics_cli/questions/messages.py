"""Reads conversations in the chat form of transformers and OpenAI clients, and lists of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from idefics_cli.errors import shortened
from idefics_cli.questions.pages import selection_of
from idefics_cli.records import DocumentPart, Role, Turn

_ROLES = ("system", "user", "assistant")
_SHOWN = 40
MOST_TOGETHER = 500
"""Documents, and pages, of one prompt: whole pages of Idefics2 fill its 32,768 positions with fewer."""
_SOURCES = {
    "image": ("image", "path", "url"),
    "image_url": ("image_url",),
    "document": ("document", "path", "url"),
    "file": ("file",),
}
"""Types of parts that name a document, and under which keys."""
_NESTED = {"image_url": ("url", ("detail",)), "file": ("file_data", ("filename",))}
"""Parts whose source may be an object, by type: the key that holds it, and keys that change nothing."""
_FORMS = (
    '{"type": "text", "text": ...}, {"type": "image", "path": ...}, {"type": "image_url", "image_url": {"url": ...}} '
    'and {"type": "document", "path": ..., "page": ...}'
)


def read_messages(value: object) -> tuple[Turn, ...]:
    """Return the turns of a conversation that ends with a question.

    Raises:
        ValueError: it is none; says where and what is wanted.
        RowFailedError: a page selection does not read as pages (kind no-such-page).

    """
    if not isinstance(value, list) or not value:
        raise ValueError('messages: a list of turns is wanted, as in [{"role": "user", "content": "..."}]')
    turns = tuple(_turn(message, f"messages[{at}]", is_first=at == 0) for at, message in enumerate(value))
    if turns[-1].role != "user":
        raise ValueError(f"messages: the last turn is the {turns[-1].role}'s, and the user's is wanted, which asks")
    if not question_of(turns):
        raise ValueError("messages: the last turn holds no text, and so no question")
    check_count(len(documents_of(turns)), "messages")
    return turns


def read_documents(value: object) -> tuple[DocumentPart, ...]:
    """Return the documents of a list: paths, or objects with `document` and `page`.

    Raises:
        ValueError: it is none; says where and what is wanted.
        RowFailedError: a page selection does not read as pages (kind no-such-page).

    """
    wanted = 'paths, or objects such as {"document": "a.pdf", "page": "1-3"}'
    if not isinstance(value, list) or not value:
        raise ValueError(f"documents: a list is wanted, of {wanted}")
    parts = []
    for at, item in enumerate(value):
        if isinstance(item, str) and item.strip():
            parts.append(DocumentPart(item.strip()))
            continue
        location = f"documents[{at}]"
        if not isinstance(item, dict):
            raise ValueError(f"{location}: {wanted} are wanted")
        _check_keys(item, ("document", "page"), location)
        parts.append(DocumentPart(_source(item.get("document"), location), selection_of(item.get("page"))))
    check_count(len(parts), "documents")
    return tuple(parts)


def documents_of(turns: Sequence[Turn]) -> tuple[DocumentPart, ...]:
    """Return the documents of turns, in their order."""
    return tuple(part for turn in turns for part in turn.content if isinstance(part, DocumentPart))


def question_of(turns: Sequence[Turn]) -> str:
    """Return the question that turns end with: the texts of the last one."""
    return " ".join(part.strip() for part in turns[-1].content if isinstance(part, str) and part.strip())


def shown_first(turns: tuple[Turn, ...], documents: Sequence[DocumentPart]) -> tuple[Turn, ...]:
    """Put documents at the start of the first turn of the user."""
    first = next(at for at, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:first], Turn("user", (*documents, *turns[first].content)), *turns[first + 1 :])


def _turn(message: object, location: str, *, is_first: bool) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"{location}: an object with role and content is wanted")
    _check_keys(message, ("role", "content"), location)
    role = message.get("role")
    if role not in _ROLES:
        raise ValueError(f"{location}: role {_shown(role)} is none of {', '.join(_ROLES)}")
    if role == "system" and not is_first:
        raise ValueError(f"{location}: a system turn stands at the beginning only")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"{location}.content: a text or a list of parts is wanted")
    parts = tuple(_part(part, f"{location}.content[{at}]") for at, part in enumerate(content))
    if not any(not isinstance(part, str) or part.strip() for part in parts):
        raise ValueError(f"{location}.content: it is empty")
    if role == "system" and documents_of([Turn("system", parts)]):
        raise ValueError(f"{location}.content: a system turn holds text only")
    return Turn(cast("Role", role), parts)


def _part(part: object, location: str) -> str | DocumentPart:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in ("text", *_SOURCES):
        raise ValueError(f"{location}: a part is one of {_FORMS}" + (f", not {_shown(kind)}" if kind else ""))
    if kind == "text":
        _check_keys(part, ("type", "text"), location)
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{location}.text: a text is wanted")
        return str(part["text"])
    keys = _SOURCES[kind]
    _check_keys(part, ("type", "page", *keys), location)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"{location}: a path or data URI is wanted under one of {', '.join(keys)}")
    source = part[given[0]]
    if isinstance(source, dict) and kind in _NESTED:
        key, others = _NESTED[kind]
        _check_keys(source, (key, *others), f"{location}.{kind}")
        source = source.get(key)
    return DocumentPart(_source(source, location), selection_of(part.get("page")))


def _source(value: object, location: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{location}: a path or data URI is wanted")
    return value.strip()


def _check_keys(given: Mapping[str, object], known: Sequence[str], location: str) -> None:
    """Refuse keys that say something nobody reads; clients write many of them, empty."""
    for key, value in given.items():
        if key not in known and value not in (None, "", [], {}):
            raise ValueError(f"{location}: {_shown(key)} is not read here; leave it out (known: {', '.join(known)})")


def check_count(count: int, name: str, things: str = "documents") -> None:
    """Refuse more than are read together.

    Raises:
        ValueError: with both numbers.

    """
    if count > MOST_TOGETHER:
        raise ValueError(f"{name}: {count:,} {things}; at most {MOST_TOGETHER} are read together")


def _shown(value: object) -> str:
    return repr(shortened(value if isinstance(value, str) else type(value).__name__, _SHOWN))
