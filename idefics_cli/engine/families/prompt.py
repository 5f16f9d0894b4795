"""Chat templates and tokenizers, without transformers: what its processors do, by the same files."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.errors import FailureKind, ModelError, RowFailedError


class Tokenizer:
    """The tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, *, adds_special_tokens: bool = True) -> None:
        """Read tokenizer.json.

        Args:
            checkpoint: whose tokenizer it is.
            adds_special_tokens: whether `encode` puts tokens around a text, as the file says.

        Raises:
            ModelError: it can't be read.

        """
        from tokenizers import Tokenizer as FastTokenizer

        try:
            self._tokenizer = FastTokenizer.from_file(str(checkpoint.tokenizer_file))
        except Exception as error:  # the library raises Exception itself
            raise ModelError(f"{checkpoint.name}: tokenizer.json can't be read: {error}") from error
        self._adds_special_tokens = adds_special_tokens
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(token.content for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, those that the tokenizer puts around it included."""
        return list(self._tokenizer.encode(text, add_special_tokens=self._adds_special_tokens).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without the special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)


class ChatTemplate:
    """A checkpoint's template of chat turns."""

    def __init__(self, source: str, name: str) -> None:
        """Compile it in a sandbox.

        Raises:
            ModelError: it is no template.

        """
        self._name = name
        self._template = _compile(source, name)

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the text of turns, up to where the assistant's answer begins.

        Raises:
            ModelError: the template refuses the turns.

        """
        from jinja2.exceptions import TemplateError

        try:
            return str(self._template.render(messages=list(messages), add_generation_prompt=True))
        except TemplateError as error:
            raise ModelError(f"{self._name}: the chat template failed: {error}") from error


@functools.lru_cache(4)
def _compile(source: str, name: str) -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(words: str) -> None:
        raise TemplateError(words)

    # What transformers gives to templates: trimmed blocks, loop controls, plain JSON, the date.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"{name}: the chat template can't be read: {error}") from error


def check_question(text: str, special_tokens: frozenset[str]) -> None:
    """Refuse a question that would be read as something else than words.

    Raises:
        RowFailedError: it holds one of the model's special tokens.

    """
    found = sorted(token for token in special_tokens if token in text)
    if found:
        raise RowFailedError(FailureKind.BAD_QUESTION, f"the question holds the model's special token {found[0]}")
