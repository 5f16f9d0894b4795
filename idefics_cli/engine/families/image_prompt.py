"""Prompts of checkpoints whose images are expanded to image tokens here: what Idefics2 and Idefics3 have in common."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Collection, Sequence

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.families.answer_text import AnswerText
from idefics_cli.engine.families.backend import check_prompt_template
from idefics_cli.engine.families.base import ModelConfig, Prompt
from idefics_cli.engine.families.chat_template import chat_template_of
from idefics_cli.engine.families.generation import Choice
from idefics_cli.engine.families.prompt import PromptForm, Tokenizer, check_turns
from idefics_cli.errors import ModelError
from idefics_cli.records import PagePart, Turn, plain_turns

IMAGE, FAKE = "<image>", "<fake_token_around_image>"


class ImagePromptBuilder(AnswerText):
    """Builds prompts with a checkpoint's own template and tokenizer."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, config: ModelConfig, template: str) -> None:
        """Take the tokenizer.

        Raises:
            ModelError: the tokenizer does not fit the model.
            UsageError: the template holds a special token.

        """
        super().__init__(tokenizer)
        self._name = checkpoint.name
        self._special_tokens = self._tokenizer.special_tokens | {IMAGE, FAKE}
        self._form = PromptForm(chat_template_of(checkpoint), template, IMAGE)
        self._shared_tokens = functools.lru_cache(1)(self._tokens_of_shared)
        check_prompt_template(template, self._special_tokens)
        self._image_id = self._tokenizer.id_of(IMAGE)
        if self._image_id != config.image_token_id:
            raise ModelError(
                f"{checkpoint.name}: {IMAGE} is token {self._image_id} of the tokenizer and "
                f"{config.image_token_id} of the model"
            )
        self._image_tokens = [self._image_id] * config.image_seq_len

    def build(
        self, turns: Sequence[Turn], crops: Sequence[int], shared_turns: int = 0, columns: Sequence[int] = ()
    ) -> Prompt:
        """See `PromptBuilder`."""
        check_turns(turns, self._special_tokens)
        columns = tuple(columns) or (0,) * len(crops)
        tokens = self._encoded(self._form.words(turns), crops, columns)
        behind = next((count for count, token in enumerate(reversed(tokens)) if token == self._image_id), len(tokens))
        # The closing fake token belongs to the prefix; at least one token is left behind it.
        prefix_length = min(len(tokens) - behind + 1, len(tokens) - 1)
        if not shared_turns:
            return Prompt(tuple(tokens), prefix_length)
        pages = sum(isinstance(part, PagePart) for turn in turns[:shared_turns] for part in turn.content)
        shared = self._shared_tokens(tuple(turns[:shared_turns]), tuple(crops[:pages]), tuple(columns[:pages]))
        differ = (at for at, (one, other) in enumerate(zip(shared, tokens, strict=False)) if one != other)
        return Prompt(tuple(tokens), prefix_length, min(next(differ, len(shared)), prefix_length - 1))

    def choice(self, text: str, suppressed_tokens: Collection[int]) -> Choice:
        """Return an answer as tokens behind a prompt, as the tokenizer writes it there.

        Raises:
            UsageError: it can't be written.

        """
        return self.choice_behind(self._form.words(plain_turns("?", 0)), text, suppressed_tokens)

    @abstractmethod
    def _page(self, crops: int, columns: int) -> str:
        """Return what stands for a page of so many images in a prompt, one image token for all those of an image."""

    def _tokens_of_shared(self, turns: tuple[Turn, ...], crops: tuple[int, ...], columns: tuple[int, ...]) -> list[int]:
        """Return the tokens of turns at the start of a prompt; the last few may be others where it goes on."""
        return self._encoded(self._form.words(turns, is_open=False), crops, columns)

    def _encoded(self, words: str, crops: Sequence[int], columns: Sequence[int]) -> list[int]:
        """Return the tokens of a text in which pages stand. An image is tokenized as one of its equal tokens."""
        tokens: list[int] = []
        for token in self._tokenizer.encode(self._expanded(words, crops, columns)):
            tokens += self._image_tokens if token == self._image_id else (token,)
        return tokens

    def _expanded(self, words: str, crops: Sequence[int], columns: Sequence[int]) -> str:
        """Expand each page of a text to what stands for it."""
        head, *rest = words.split(IMAGE)
        if len(rest) != len(crops):
            raise ModelError(
                f"{self._name}: the chat template writes {len(rest)} images where {len(crops)} were asked for"
            )
        pages = zip(crops, columns, rest, strict=True)
        return head + "".join(self._page(count, across) + after for count, across, after in pages)
