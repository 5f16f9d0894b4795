"""Tokenizers, and turns in the words of prompts, without transformers: what its processors do, by the same files."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.chat_template import ChatTemplate, messages_of, named_tokens
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import DocumentPart, PagePart, Turn


class Tokenizer:
    """The tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, *, adds_special_tokens: bool = True) -> None:
        """Read tokenizer.json.

        Args:
            checkpoint: whose tokenizer it is.
            adds_special_tokens: whether `encode` puts tokens around a text, as the file says; a text that begins with
                `bos_token`, as templates may write it, gets none.

        Raises:
            ModelError: it can't be read.

        """
        from tokenizers import Tokenizer as FastTokenizer

        try:
            # Not by its path, which the library takes in UTF-8 only.
            self._tokenizer = FastTokenizer.from_buffer(checkpoint.tokenizer_file.read_bytes())
        except Exception as error:  # the library raises Exception itself
            raise ModelError(f"{checkpoint.name}: tokenizer.json can't be read: {error}") from error
        self._adds_special_tokens = adds_special_tokens
        self._bos_token = named_tokens(checkpoint).get("bos_token", "")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(token.content for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, those that the tokenizer puts around it included."""
        has_bos = bool(self._bos_token) and text.startswith(self._bos_token)
        return list(self._tokenizer.encode(text, add_special_tokens=self._adds_special_tokens and not has_bos).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without the special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)


class PromptForm:
    """Puts turns into words: by a chat template or, where a checkpoint has none, as text that goes on.

    Without a template, turns are `Question: ... Answer: ...` lines with the pages where they stand; a question by
    itself is its pages and its text, and nothing else.
    """

    def __init__(self, chat: ChatTemplate | None, template: str, image: str) -> None:
        """Take the template of chat turns, that of questions (`--prompt`), and what stands for an image."""
        self._chat, self._template, self._image = chat, template, image

    def words(self, turns: Sequence[Turn], *, is_open: bool = True) -> str:
        """Return the text of turns; an open one ends where the next answer begins.

        Raises:
            ModelError: the chat template refuses a question by itself.
            RowFailedError: it refuses these turns.

        """
        asked = self.asked(turns)
        if self._chat is None:
            return self._continued(asked)
        try:
            return self._chat.render(messages_of(asked), add_generation_prompt=is_open)
        except ModelError as error:
            if len(turns) == 1:
                raise
            raise RowFailedError(FailureKind.BAD_QUESTION, f"messages: {error}") from error

    def asked(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return turns as they are put into words: `--prompt` around questions, a system turn where one is taken."""
        asked = [Turn(turn.role, self._content(turn)) for turn in turns]
        return _without_system_turn(asked) if self._chat and not self._chat.has_system_turn else asked

    def _content(self, turn: Turn) -> tuple[str | DocumentPart | PagePart, ...]:
        """Return the content of a turn; the last text of a user's turn is the question that `--prompt` is about."""
        last = _last_text(turn)
        if turn.role != "user" or last is None:
            return turn.content
        text = self._template.replace("{question}", str(turn.content[last]))
        return (*turn.content[:last], text, *turn.content[last + 1 :])

    def _continued(self, turns: Sequence[Turn]) -> str:
        """Return turns as they stand in a text: `<image>Question: ... Answer: ...`, a line for each answer."""
        words = []
        if turns[0].role == "system":
            words.append(f"{self._joined(turns[0].content)}\n\n")
            turns = turns[1:]
        if len(turns) == 1:
            return "".join([*words, self._joined(turns[0].content)])
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            if turn.role == "assistant":
                words.append(f" {self._joined(turn.content)}\n")
                continue
            words.append(self._joined(turn.content[: _last_text(turn)]))
            if (at := _last_text(turn)) is not None:
                words.append(f"Question: {self._joined(turn.content[at:])}")
                words.append(" Answer:" if following is None or following.role == "assistant" else " ")
        return "".join(words)

    def _joined(self, content: Sequence[str | DocumentPart | PagePart]) -> str:
        return "".join(part if isinstance(part, str) else self._image for part in content)


def _last_text(turn: Turn) -> int | None:
    return max((at for at, part in enumerate(turn.content) if isinstance(part, str)), default=None)


def _without_system_turn(turns: list[Turn]) -> list[Turn]:
    """Put what a system turn says at the beginning of the first user's turn."""
    if turns[0].role != "system":
        return turns
    system, *others = turns
    said = "".join(part for part in system.content if isinstance(part, str))
    first = next(at for at, turn in enumerate(others) if turn.role == "user")
    others[first] = Turn("user", (f"{said}\n\n", *others[first].content))
    return others


def check_turns(turns: Sequence[Turn], special_tokens: frozenset[str]) -> None:
    """Refuse texts that would be read as something else than words.

    Raises:
        RowFailedError: one holds one of the model's special tokens.

    """
    for number, turn in enumerate(turns, 1):
        for text in (part for part in turn.content if isinstance(part, str)):
            if found := sorted(token for token in special_tokens if token in text):
                what = "the question" if number == len(turns) else f"turn {number} of the conversation"
                raise RowFailedError(FailureKind.BAD_QUESTION, f"{what} holds the model's special token {found[0]}")
