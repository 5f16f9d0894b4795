"""Whether a chat template says all that a conversation does: some leave turns or images out without an error."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence

from idefics_cli.engine.families.chat_template import ChatTemplate, messages_of
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import PAGE, PagePart, Role, Turn, plain_turns

_Shape = tuple[tuple[Role, tuple[bool, ...]], ...]
"""Of a conversation: the role of each turn, and which of its parts are texts; blank ones are none."""
_CHAT = (Turn("user", (PAGE, "?")), Turn("assistant", ("!",)), Turn("user", ("?",)))
_EXAMPLES = (Turn("user", (PAGE, "?")), Turn("assistant", ("!",)), Turn("user", (PAGE, "?")))


class TemplateCheck:
    """Renders conversations with other texts, which are found again, and looks where they stand."""

    def __init__(self, chat: ChatTemplate, name: str, special_tokens: Collection[str]) -> None:
        """Find what the template writes for an image.

        Args:
            chat: the template.
            name: of the checkpoint, for messages.
            special_tokens: of the tokenizer and the processor, one of which stands for an image.

        Raises:
            ModelError: the template refuses a question about a page, or does not say it.

        """
        self._chat, self._name = chat, name
        self._image = self._image_token(special_tokens)
        self._moved_in = functools.lru_cache(256)(self._moved)
        if refusal := self._refusal(plain_turns("?", 1)):
            raise ModelError(refusal)

    def moved(self, turns: Sequence[Turn]) -> str:
        """Return what of a conversation gets another place by the template, in words; empty for nothing.

        Raises:
            RowFailedError: the template refuses these turns, or leaves a text or an image out.

        """
        said = [[part for part in turn.content if not isinstance(part, str) or part.strip()] for turn in turns]
        kinds = (tuple(isinstance(part, str) for part in parts) for parts in said)
        return self._moved_in(tuple(zip((turn.role for turn in turns), kinds, strict=True)))

    @functools.cached_property
    def chat_refusal(self) -> str:
        """Why questions can't go on after an answer; empty where they can."""
        return self._refusal(_CHAT)

    @functools.cached_property
    def examples_refusal(self) -> str:
        """Why questions with their own pages and answers can't stand before a question; empty where they can."""
        return self._refusal(_EXAMPLES)

    def _refusal(self, turns: Sequence[Turn]) -> str:
        try:
            self.moved(turns)
        except RowFailedError as error:
            return error.failure.detail
        return ""

    def _image_token(self, special_tokens: Collection[str]) -> str:
        """Return the special token that the template writes once for an image; empty where there is none."""
        shown = self._chat.render(messages_of(plain_turns("?", 1)))
        try:
            hidden = self._chat.render(messages_of(plain_turns("?", 0)))
        except ModelError:
            hidden = ""  # it wants an image
        found = [token for token in special_tokens if token and shown.count(token) == 1 and token not in hidden]
        return min(found, key=lambda token: (shown.index(token), -len(token)), default="")

    def _moved(self, shape: _Shape) -> str:
        """See `moved`."""
        numbers = itertools.count()
        turns = [
            Turn(role, tuple(f"said{next(numbers)}." if is_text else PAGE for is_text in kinds))
            for role, kinds in shape
        ]
        try:
            words = self._chat.render(messages_of(turns))
        except ModelError as error:
            raise RowFailedError(FailureKind.BAD_QUESTION, str(error)) from error
        if "'type'" in words:  # a list of parts, written as Python does
            raise RowFailedError(
                FailureKind.BAD_QUESTION, f"{self._name}: the chat template does not take a turn's parts, only a text"
            )
        images = sum(isinstance(part, PagePart) for turn in turns for part in turn.content)
        if self._image and words.count(self._image) != images:
            raise RowFailedError(
                FailureKind.BAD_QUESTION,
                f"{self._name}: the chat template writes {words.count(self._image)} images where the conversation "
                f"has {images}",
            )
        if self._stands_in(words, turns):
            return ""
        for is_behind, place in ((False, "before"), (True, "behind")):
            ordered = [
                Turn(turn.role, tuple(sorted(turn.content, key=lambda part: isinstance(part, str) != is_behind)))
                for turn in turns
            ]
            if self._stands_in(words, ordered):
                return f"the chat template puts the pages of a turn {place} its texts"
        raise RowFailedError(
            FailureKind.BAD_QUESTION, f"{self._name}: the chat template leaves out or moves what a turn says"
        )

    def _stands_in(self, words: str, turns: Sequence[Turn]) -> bool:
        """Whether a text holds all parts of turns in their order."""
        at = 0
        for part in (part for turn in turns for part in turn.content):
            wanted = part if isinstance(part, str) else self._image
            found = words.find(wanted, at)
            if found < 0:
                return False
            at = found + len(wanted)
        return True
