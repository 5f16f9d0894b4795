"""Prints answers as `ask` gives them: nothing else on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.console import log, note
from idefics_cli.errors import one_line

if TYPE_CHECKING:
    from idefics_cli.local_socket.answers import Answers
    from idefics_cli.records import Row


def is_file(name: str) -> bool:
    """Whether a name is that of a file or folder."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


class AnswerPrinter:
    """Prints answers for people, and for `$(...)` of a shell."""

    def __init__(self, answers: Answers, *, is_named: bool, is_together: bool, asks_several: bool = False) -> None:
        """Take how answers are told apart.

        Args:
            answers: where they come from.
            is_named: whether each begins with its document.
            is_together: whether each is about all documents, which then need no name.
            asks_several: whether there are several questions, so that each answer begins with its own.

        """
        self._answers, self._is_named, self._is_together = answers, is_named, is_together
        self._asks_several = asks_several
        self._pages: tuple[str, int] = "", 0

    def line(self, row: Row) -> str:
        """Return the answer, named by what else could have been meant; nothing for a failed row."""
        if row.status == "failed":
            return ""
        place = [row.document] if self._is_named else []
        is_each = self._answers.settings.pages.across == "each"
        if (self._is_named or is_each) and self._has_several_pages(row):
            place.append(f"page {row.page}")
        question = f"{_as_name(row.question)} " if self._asks_several else ""
        return f"{', '.join(place)}: " * bool(place) + f"{question}{one_line(row.answer)}\n"

    def messages(self, row: Row, *, is_whole: bool) -> None:
        """Say on stderr why a row failed, and what its answer should be read with."""
        if row.status == "failed":
            question = f"{_as_name(row.question)} " if self._asks_several else ""
            log.error("%s: %s%s", row.document, question, row.error)
        elif row.warning and not is_whole:
            log.warning("%s: %s", row.document, row.warning)
        if row.status == "ok":
            log.info("%s, page %s: answered in %.0f ms", row.document, row.page, row.latency_ms or 0.0)
            is_single = not (self._is_named or self._is_together or is_whole)
            if is_single and sys.stderr.isatty() and row.page != "1":
                note(f"from page {row.page}")

    def _has_several_pages(self, row: Row) -> bool:
        if row.page != "1":
            return True
        if self._pages[0] != row.document:
            self._pages = row.document, self._answers.page_count(row.document) if is_file(row.document) else 1
        return self._pages[1] > 1


def _as_name(question: str) -> str:
    """Return a question as it stands before its answer."""
    line = one_line(question)
    return line if line.endswith(("?", ":", ".", "!")) else f"{line}:"
