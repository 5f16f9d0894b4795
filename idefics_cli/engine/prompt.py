"""Words a question as the checkpoint was trained to see it, and expands its images to tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from idefics_cli.errors import FailureKind, RowFailedError


class PromptBuilder:
    """Builds the tokens of a prompt with the checkpoint's own template and tokenizer."""

    def __init__(self, processor: Any, template: str) -> None:
        self._processor, self._template = processor, template
        self._tokenizer = processor.tokenizer
        self._image: str = _content(processor.image_token)
        self._fake: str = _content(processor.fake_image_token)
        self._image_id = int(self._tokenizer.convert_tokens_to_ids(self._image))
        self._marks = {str(mark) for mark in self._tokenizer.all_special_tokens} | {self._image, self._fake}
        self._closing = re.compile(rf"{re.escape(self._fake)}(?=[^\s<])")

    def tokens(self, question: str, crops: Sequence[int]) -> list[int]:
        """Return the tokens of a question about pages of so many crops each, image tokens expanded.

        Raises:
            RowFailedError: the question holds one of the model's own marks, such as `<image>`.

        """
        found = sorted(mark for mark in self._marks if mark in question)
        if found:
            raise RowFailedError(FailureKind.BAD_QUESTION, f"the question holds the model's own mark {found[0]}")
        text = self._template.replace("{question}", question)
        return list(self._tokenizer(self._expanded(self._words(text, len(crops)), crops))["input_ids"])

    def prefix_length(self, tokens: Sequence[int]) -> int:
        """Return how many tokens end with the last image, which questions about the same pages have in common.

        At least one token is left behind the prefix.
        """
        last = max(place for place, token in enumerate(tokens) if token == self._image_id)
        return min(last + 2, len(tokens) - 1)  # with the closing fake token

    def _words(self, text: str, images: int) -> str:
        """Chat checkpoints get a user's turn, base checkpoints the images and the text."""
        if not getattr(self._processor, "chat_template", None):
            return self._image * images + text
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        words: str = self._processor.apply_chat_template(turns, add_generation_prompt=True)
        return words

    def _expanded(self, words: str, crops: Sequence[int]) -> str:
        """Put each image's tokens in its place, by the rules of the stock processor but page by page.

        An image is fake, 64 image tokens, fake; between adjacent images one fake token stands; a space parts the
        closing fake token from a word.
        """
        one = self._fake + self._image * self._processor.image_seq_len + self._fake
        head, *rest = words.split(self._image)
        expanded = head + "".join(one * count + after for count, after in zip(crops, rest, strict=True))
        return self._closing.sub(f"{self._fake} ", expanded.replace(self._fake * 2, self._fake))


def _content(token: Any) -> str:
    return str(getattr(token, "content", token))
