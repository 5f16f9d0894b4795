"""Refuses prompts that are longer than what the model takes."""

from __future__ import annotations

from collections.abc import Iterable

from idefics_cli.engine.families.generation import GenerationRules
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Turn

_LONGEST_TOKEN = 64  # characters, on an average over a text


def check_text(turns: Iterable[Turn], max_positions: float) -> None:
    """Refuse texts that are far too long before they are made tokens, which takes hundreds of bytes for a character.

    Raises:
        RowFailedError: they hold more than what the model takes, however long its tokens are.

    """
    length = sum(len(part) for turn in turns for part in turn.content if isinstance(part, str))
    if length > max_positions * _LONGEST_TOKEN:
        words = f"a text of {length:,} characters; the model takes {max_positions} tokens"
        raise RowFailedError(FailureKind.TOO_LARGE, words)


def check_length(prompt_tokens: int, rules: GenerationRules, max_positions: float) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Raises:
        RowFailedError: prompt and answer are longer than what the model takes.

    """
    if prompt_tokens + rules.max_new_tokens > max_positions:
        flag = "--choices" if rules.choices else "--max-new-tokens"
        raise RowFailedError(
            FailureKind.TOO_LARGE,
            f"a prompt of {prompt_tokens} tokens and an answer of up to {rules.max_new_tokens} ({flag}); the model "
            f"takes {max_positions} together",
        )
