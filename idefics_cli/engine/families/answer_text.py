"""From the tokens of answers to their text, and from the text of choices to tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from idefics_cli.engine.families.generation import Choice
from idefics_cli.engine.families.prompt import Tokenizer
from idefics_cli.errors import UsageError


class AnswerReader(Protocol):
    """Reads the tokens of answers."""

    def decode(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return the text of an answer's tokens: special tokens left out, spaces around it stripped.

        Args:
            tokens: of the answer.
            stop: texts before the first of which it is cut.

        """

    def has_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the text of an answer's tokens holds one of these texts."""


class AnswerText:
    """Reads and writes answers with a checkpoint's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """See `AnswerReader`."""
        text = self._tokenizer.decode(tokens)
        starts = [start for start in map(text.find, stop) if start >= 0]
        return text[: min(starts, default=len(text))].strip()

    def has_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """See `AnswerReader`.

        All tokens are decoded anew each time: what a token adds to a text may depend on those before it.
        """
        text = self._tokenizer.decode(tokens) if stop else ""
        return any(one in text for one in stop)

    def choice_behind(self, prompt: str, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind the words of a prompt, as the tokenizer writes it there.

        Raises:
            UsageError: it can't be written.

        """
        text = text.strip()
        before = self._tokenizer.encode(prompt)
        written = []
        for space in (" ", ""):
            tokens = self._tokenizer.encode(prompt + space + text)
            behind = tuple(tokens[len(before) :])
            is_possible = tokens[: len(before)] == before and self.decode(behind) == text
            if is_possible and behind not in written and not set(behind) & set(suppressed_tokens):
                written.append(behind)
        if not written:
            raise UsageError(f"--choices: the checkpoint can't write {text!r}; give this answer another spelling")
        return Choice(text, tuple(written))
