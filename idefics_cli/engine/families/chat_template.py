"""Chat templates, without transformers: what its processors do with the same files."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.errors import ModelError, first_line
from idefics_cli.records import PAGE, Turn

_PROBE = "what a system turn says"


class ChatTemplate:
    """A checkpoint's template of chat turns."""

    def __init__(self, source: str, name: str, tokens: Mapping[str, str] = {}) -> None:
        """Compile it in a sandbox.

        Args:
            source: the template.
            name: of the checkpoint, for messages.
            tokens: special tokens that it may write by their names, such as `bos_token`.

        Raises:
            ModelError: it is no template.

        """
        self._name, self._tokens = name, tokens
        self._template = _compile(source, name)

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Return the text of turns, up to where the assistant's answer begins or, without that, to their end.

        Raises:
            ModelError: the template refuses the turns.

        """
        try:
            return str(
                self._template.render(
                    messages=list(messages), add_generation_prompt=add_generation_prompt, **self._tokens
                )
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise ModelError(f"{self._name}: the chat template failed: {first_line(error)}") from error

    @functools.cached_property
    def has_system_turn(self) -> bool:
        """Whether it takes a system turn before a page: some raise an error then, others leave it out."""
        turns = [Turn("system", (_PROBE,)), Turn("user", (PAGE, "?"))]
        try:
            return _PROBE in self.render(messages_of(turns))
        except ModelError:
            return False


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return turns as chat templates take them."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content
            ],
        }
        for turn in turns
    ]


def chat_template_of(checkpoint: Checkpoint) -> ChatTemplate | None:
    """Return a checkpoint's template; None where it has none.

    Raises:
        ModelError: it is no template.

    """
    if not checkpoint.chat_template:
        return None
    return ChatTemplate(checkpoint.chat_template, checkpoint.name, named_tokens(checkpoint))


def named_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the special tokens that a template may write by their names, such as `bos_token`."""
    tokenizer_config = checkpoint.tokenizer_config
    more = (tokenizer_config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens"))
    tokens = {}
    for settings in (tokenizer_config, *(one for one in more if isinstance(one, dict))):
        for name, value in settings.items():
            token = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(token, str):
                tokens[name] = token
    return tokens


@functools.lru_cache(4)
def _compile(source: str, name: str) -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what the assistant says, which only training asks for."""

        tags = {"generation"}  # noqa: RUF012 - as the library declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(words: str) -> None:
        raise TemplateError(words)

    # What transformers gives to templates: trimmed blocks, loop controls, marks of generation, plain JSON, the date.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"{name}: the chat template can't be read: {error}") from error
