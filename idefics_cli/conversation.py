"""From a question and its pages to what an engine is asked: the turns of the conversation, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli.records import PAGE, PagePart, PreparedPage, Question, Request, Turn


@dataclass(frozen=True, slots=True)
class PreparedExamples:
    """The turns of examples, and their pages."""

    turns: tuple[Turn, ...]
    """Each question with its pages, then its answer."""
    pages: tuple[PreparedPage, ...]
    page_ids: tuple[str, ...]


def request_of(
    question: Question,
    counts: Sequence[int],
    pages: tuple[PreparedPage, ...],
    page_ids: tuple[str, ...],
    examples: PreparedExamples | None = None,
) -> Request:
    """Return the request of a question.

    Args:
        question: with the conversation before it, if there is one.
        counts: how many of the pages are of each of its documents, in their order.
        pages: all of them.
        page_ids: likewise.
        examples: stand in front of it, behind a system turn.

    """
    if not question.turns and examples is None:
        return Request(question.text, pages, page_ids)
    turns = conversation_of(question, counts)
    if examples is None:
        return Request(question.text, pages, page_ids, turns)
    system = turns[:1] if turns[0].role == "system" else ()
    shared = (*system, *examples.turns)
    return Request(
        question.text,
        (*examples.pages, *pages),
        (*examples.page_ids, *page_ids),
        (*shared, *turns[len(system) :]),
        shared_turns=len(shared),
    )


def conversation_of(question: Question, counts: Sequence[int]) -> tuple[Turn, ...]:
    """Return the turns of a question, with a page part for each page.

    Pages that stand nowhere in the turns come at the start of the first one of the user.
    """
    if not question.turns:
        return (Turn("user", (*[PAGE] * sum(counts), question.text)),)
    if not question.documents:
        first = next(at for at, turn in enumerate(question.turns) if turn.role == "user")
        shown = Turn("user", (*[PAGE] * sum(counts), *question.turns[first].content))
        return (*question.turns[:first], shown, *question.turns[first + 1 :])
    following = iter(counts)
    turns = []
    for turn in question.turns:
        content: list[str | PagePart] = []
        for part in turn.content:
            content += [part] if isinstance(part, str) else [PAGE] * next(following)
        turns.append(Turn(turn.role, tuple(content)))
    return tuple(turns)
